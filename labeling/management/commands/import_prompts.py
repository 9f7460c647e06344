"""`manage.py import_prompts`: bring prompts, and demonstrations beside them, from files."""

from labeling.actions import imports
from labeling.management.importing import ImportCommand


class Command(ImportCommand):
    help = "Bring prompts from files. All or nothing per file; a repeat adds nothing."
    action = staticmethod(imports.import_prompts)
    fields = """
fields of a row:
  prompt         text of the prompt (at most 200,000 characters), or
  messages       [{"role": "system|user|assistant", "content": "…"}], the last one from the user (in CSV: as JSON)
  kind           plain (default), few_shot, user_based
  use_case       at most 50 characters
  author         a key of whoever wrote it; all prompts of an author share one split for ever
  organization   at most 200 characters
  split          train, valid, test; default: by author, else by the prompt itself
  external_id    your own id of the prompt, unique
  metadata       a JSON object
  demonstration  a response written by a person, or a list of them

examples:
  import_prompts prompts.jsonl
  import_prompts self_instruct_seed_tasks.jsonl --format self_instruct
  import_prompts tasks.csv --map prompt=question --map demonstration=answer --constant use_case=open_qa
"""
