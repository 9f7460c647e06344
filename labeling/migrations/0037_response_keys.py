"""A response's prompt and model: looked up once for all responses of a statement, not by two foreign keys for each of them.

What foreign keys hold beside that, holds by itself where nothing is ever deleted: prompts and models are kept, their keys too.
"""

import django.db.models.deletion
from django.db import migrations, models

# LATERAL … LIMIT 1, by the index: the plan is kept for a session, and must do for one response and for a million.
KEYS = """
CREATE FUNCTION heed_check_response_keys() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
  missing bigint;
BEGIN
  SELECT m.prompt_id INTO missing
    FROM made m LEFT JOIN LATERAL (SELECT true AS there FROM labeling_prompt WHERE id = m.prompt_id LIMIT 1) p ON true
   WHERE p.there IS NULL LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'there is no prompt of id %', missing USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'response_prompt';
  END IF;
  SELECT m.model_version_id INTO missing
    FROM (SELECT DISTINCT model_version_id FROM made WHERE model_version_id IS NOT NULL) m
   WHERE NOT EXISTS (SELECT FROM labeling_modelversion WHERE id = m.model_version_id) LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'there is no model of id %', missing USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'response_model';
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER response_keys AFTER INSERT ON labeling_response REFERENCING NEW TABLE AS made
  FOR EACH STATEMENT EXECUTE FUNCTION heed_check_response_keys();

CREATE FUNCTION heed_refuse_removal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '% rows are kept, and their keys: % of id % refused', TG_TABLE_NAME, TG_OP, OLD.id
    USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER prompt_kept BEFORE DELETE OR UPDATE OF id ON labeling_prompt
  FOR EACH ROW EXECUTE FUNCTION heed_refuse_removal();
CREATE TRIGGER model_version_kept BEFORE DELETE OR UPDATE OF id ON labeling_modelversion
  FOR EACH ROW EXECUTE FUNCTION heed_refuse_removal();
"""
DROP_KEYS = """
DROP TRIGGER model_version_kept ON labeling_modelversion;
DROP TRIGGER prompt_kept ON labeling_prompt;
DROP FUNCTION heed_refuse_removal();
DROP TRIGGER response_keys ON labeling_response;
DROP FUNCTION heed_check_response_keys();
"""


class Migration(migrations.Migration):
    dependencies = [
        ("labeling", "0036_prompt_indexes"),
    ]

    operations = [
        migrations.RunSQL(KEYS, DROP_KEYS),
        migrations.AlterField(
            model_name="response",
            name="prompt",
            field=models.ForeignKey(
                db_constraint=False,
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="responses",
                to="labeling.prompt",
            ),
        ),
        migrations.AlterField(
            model_name="response",
            name="model_version",
            field=models.ForeignKey(
                blank=True,
                db_constraint=False,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="responses",
                to="labeling.modelversion",
            ),
        ),
    ]
