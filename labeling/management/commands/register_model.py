"""`manage.py register_model`: put a model folder into the registry."""

import argparse
from pathlib import Path

from django.core.management.base import BaseCommand, CommandError

from labeling.actions import model_versions
from labeling.errors import HeedError
from training.contract import ContractError, with_few_shot_prefix


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

        parser.add_argument(
            "--few-shot-prefix",
            metavar="FILE",
            help="register the same weights once more, with this file's text before every prompt: a prompted baseline "
            "(the model itself first); needs --name",
        )
        parser.add_argument(
            "--name", help="the name of that baseline; its folder, of hard links, is made beside the model's"
        )

    def handle(self, *args: object, folder: str, uri: str, **options) -> None:
        try:
            if options["few_shot_prefix"] or options["name"]:
                folder = str(_prompted(Path(folder), options["name"], options["few_shot_prefix"]))
            version = model_versions.register_folder(folder=folder, uri=uri, by=None)
        except HeedError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(
            f"{version.name}: {version.stage}, {version.status}, manifest {(version.manifest_sha256 or '')[:12]}"
        )


def _prompted(folder: Path, name: str | None, file: str | None) -> Path:
    """The folder of the baseline; one that is there already is taken as it is."""
    if not name or not file or Path(name).name != name:
        raise CommandError("--few-shot-prefix FILE and --name NAME (a folder's name) go together")
    out = folder.resolve().parent / name
    try:
        if not out.exists():
            with_few_shot_prefix(folder.resolve(), out, Path(file).read_text(encoding="utf-8"))
    except (ContractError, OSError, UnicodeDecodeError) as error:
        raise CommandError(str(error)) from error
    return out
