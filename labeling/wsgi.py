"""The web process: gunicorn labeling.wsgi."""

import gc
import os

from django.core.wsgi import get_wsgi_application
from django.urls import get_resolver

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "labeling.settings")
application = get_wsgi_application()
_ = get_resolver().url_patterns  # every view, which the first request would load otherwise
# What is loaded now stays for ever. Looked through again at every full collection, it made some request wait for 120 ms; and the
# collector's marks would unshare the memory that `gunicorn --preload` shares between processes.
gc.collect()
gc.freeze()
# A request makes some thousands of objects, nearly all of which go without the collector: after every 700 it cost one in twenty of
# its processor time.
gc.set_threshold(10_000)
