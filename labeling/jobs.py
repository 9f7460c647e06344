"""Background jobs (procrastinate). Each may run twice without harm; a worker killed in the middle leaves its job `doing`,
and a periodic job gives it back."""

import logging

log = logging.getLogger(__name__)
