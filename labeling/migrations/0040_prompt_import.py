"""A prompt's import: looked up once for all prompts of a statement, not by a foreign key for each of them (as 0037 for responses)."""

import django.db.models.deletion
from django.db import migrations, models

IMPORT = """
CREATE FUNCTION heed_check_prompt_import() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  missing bigint;
BEGIN
  SELECT m.imported_in_id INTO missing
    FROM (SELECT DISTINCT imported_in_id FROM made WHERE imported_in_id IS NOT NULL) m
   WHERE NOT EXISTS (SELECT FROM labeling_import WHERE id = m.imported_in_id) LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'there is no import of id %', missing USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'prompt_import';
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER prompt_import AFTER INSERT ON labeling_prompt REFERENCING NEW TABLE AS made
  FOR EACH STATEMENT EXECUTE FUNCTION heed_check_prompt_import();
CREATE TRIGGER prompt_import_kept BEFORE UPDATE ON labeling_prompt
  FOR EACH ROW WHEN (OLD.imported_in_id IS DISTINCT FROM NEW.imported_in_id) EXECUTE FUNCTION heed_refuse_change();
CREATE TRIGGER import_kept BEFORE DELETE OR UPDATE OF id ON labeling_import
  FOR EACH ROW EXECUTE FUNCTION heed_refuse_removal();
"""
DROP_IMPORT = """
DROP TRIGGER import_kept ON labeling_import;
DROP TRIGGER prompt_import_kept ON labeling_prompt;
DROP TRIGGER prompt_import ON labeling_prompt;
DROP FUNCTION heed_check_prompt_import();
"""


class Migration(migrations.Migration):
    dependencies = [
        ("labeling", "0039_response_by_person"),
    ]

    operations = [
        migrations.RunSQL(IMPORT, DROP_IMPORT),
        migrations.AlterField(
            model_name="prompt",
            name="imported_in",
            field=models.ForeignKey(
                blank=True,
                db_constraint=False,
                db_index=False,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="prompts",
                to="labeling.import",
            ),
        ),
    ]
