"""`manage.py import_responses`: bring models' responses, and the prompts they answer, from files."""

from labeling.actions import imports
from labeling.management.importing import ImportCommand


class Command(ImportCommand):
    help = "Bring responses, and the prompts they answer, from files. All or nothing per file; a repeat adds nothing."
    action = staticmethod(imports.import_responses)
    fields = """
fields of a row: those of import_prompts (for prompts that are not here yet), or prompt_id, the UUID of one that is; and
  model                 name of the model version; one not known yet becomes an outside model
  response              its text, at most 200,000 characters
  response_external_id  your own id of the response; default: by its text
  finish_reason         stop or length
  sampling              a JSON object: temperature, seed, …
  or responses: [{"model", "text", "external_id", "finish_reason", "sampling"}] for several at once

examples:
  import_responses responses.jsonl
  import_responses instructgpt_tldr.csv --map prompt=context --map model=model_type --map response=sample
"""
