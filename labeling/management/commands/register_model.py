"""`manage.py register_model`: put a model folder into the registry."""

import argparse

from django.core.management.base import BaseCommand, CommandError

from labeling.actions import model_versions
from labeling.errors import HeedError


class Command(BaseCommand):
    help = (
        "Register a model folder by its manifest.json, every file checked against it. Parents and export must be "
        "registered already. Registering it twice changes nothing."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("folder", help="model folder on this machine")
        parser.add_argument(
            "--uri", default="", help="where others find it: a path or fsspec URL (default: the folder's path)"
        )

    def handle(self, *args: object, folder: str, uri: str, **options) -> None:
        try:
            version = model_versions.register_folder(folder=folder, uri=uri, by=None)
        except HeedError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(
            f"{version.name}: {version.stage}, {version.status}, manifest {(version.manifest_sha256 or '')[:12]}"
        )
