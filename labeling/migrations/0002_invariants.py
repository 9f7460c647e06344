"""Invariants that Django's constraints cannot express: composite foreign keys, append-only tables, whole rankings."""

from django.core.management import call_command
from django.db import migrations

COMPOSITE_KEYS = """
-- All prompts of an author share the author's split.
ALTER TABLE labeling_prompt ADD CONSTRAINT prompt_split_is_authors
  FOREIGN KEY (author_id, split) REFERENCES labeling_author (id, split) DEFERRABLE INITIALLY DEFERRED;

-- A submission's slot is a seat of this labeler on this task.
ALTER TABLE labeling_slot ADD CONSTRAINT slot_id_task_labeler_unique UNIQUE (id, task_id, labeler_id);
ALTER TABLE labeling_submission ADD CONSTRAINT submission_slot_is_labelers
  FOREIGN KEY (slot_id, task_id, labeler_id) REFERENCES labeling_slot (id, task_id, labeler_id);

-- A review is about a revision of its own submission.
ALTER TABLE labeling_revision ADD CONSTRAINT revision_id_submission_unique UNIQUE (id, submission_id);
ALTER TABLE labeling_review ADD CONSTRAINT review_revision_is_submissions
  FOREIGN KEY (revision_id, submission_id) REFERENCES labeling_revision (id, submission_id);
"""

DROP_COMPOSITE_KEYS = """
ALTER TABLE labeling_review DROP CONSTRAINT review_revision_is_submissions;
ALTER TABLE labeling_revision DROP CONSTRAINT revision_id_submission_unique;
ALTER TABLE labeling_submission DROP CONSTRAINT submission_slot_is_labelers;
ALTER TABLE labeling_slot DROP CONSTRAINT slot_id_task_labeler_unique;
ALTER TABLE labeling_prompt DROP CONSTRAINT prompt_split_is_authors;
"""

# Erasure of a person is the one exception to "for ever": it says so with SET LOCAL heed.erasure = 'on'.
APPEND_ONLY = """
CREATE FUNCTION heed_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF current_setting('heed.erasure', true) = 'on' THEN
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
  END IF;
  RAISE EXCEPTION '% rows are kept as they were written: % of id % refused', TG_TABLE_NAME, TG_OP, OLD.id
    USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER revision_append_only BEFORE UPDATE OR DELETE ON labeling_revision
  FOR EACH ROW EXECUTE FUNCTION heed_refuse_change();
CREATE TRIGGER review_append_only BEFORE UPDATE OR DELETE ON labeling_review
  FOR EACH ROW EXECUTE FUNCTION heed_refuse_change();
CREATE TRIGGER label_schema_append_only BEFORE UPDATE OR DELETE ON labeling_labelschema
  FOR EACH ROW EXECUTE FUNCTION heed_refuse_change();
CREATE TRIGGER evaluation_append_only BEFORE UPDATE OR DELETE ON labeling_evaluation
  FOR EACH ROW EXECUTE FUNCTION heed_refuse_change();

-- A finished export never changes; withdrawing it touches its status alone.
CREATE TRIGGER export_immutable BEFORE UPDATE ON labeling_export FOR EACH ROW
  WHEN (OLD.number IS NOT NULL AND (OLD.number, OLD.query, OLD.counts, OLD.data_sha256, OLD.manifest)
        IS DISTINCT FROM (NEW.number, NEW.query, NEW.counts, NEW.data_sha256, NEW.manifest))
  EXECUTE FUNCTION heed_refuse_change();
CREATE TRIGGER export_kept BEFORE DELETE ON labeling_export FOR EACH ROW
  WHEN (OLD.number IS NOT NULL) EXECUTE FUNCTION heed_refuse_change();

-- What a model was asked and answered does not change under the labels made on it.
CREATE TRIGGER response_text_kept BEFORE UPDATE ON labeling_response FOR EACH ROW
  WHEN ((OLD.text, OLD.prompt_id, OLD.model_version_id) IS DISTINCT FROM (NEW.text, NEW.prompt_id, NEW.model_version_id))
  EXECUTE FUNCTION heed_refuse_change();
CREATE TRIGGER prompt_messages_kept BEFORE UPDATE ON labeling_prompt FOR EACH ROW
  WHEN ((OLD.messages, OLD.split) IS DISTINCT FROM (NEW.messages, NEW.split)) EXECUTE FUNCTION heed_refuse_change();
CREATE TRIGGER task_responses_kept BEFORE UPDATE OR DELETE ON labeling_taskresponse
  FOR EACH ROW EXECUTE FUNCTION heed_refuse_change();
"""

DROP_APPEND_ONLY = """
DROP FUNCTION heed_refuse_change CASCADE;
"""

WHOLE_RANKINGS = """
-- A ranking holds every response of its task exactly once, and rates no other; a demonstration answers a demonstration task.
CREATE FUNCTION heed_check_revision() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  task_kind text;
  expected text[];
  given text[];
  foreign_ids text[];
BEGIN
  SELECT t.kind, ARRAY(
      SELECT r.uuid::text COLLATE "C" FROM labeling_taskresponse tr JOIN labeling_response r ON r.id = tr.response_id
      WHERE tr.task_id = t.id ORDER BY 1)
    INTO task_kind, expected
    FROM labeling_submission s JOIN labeling_task t ON t.id = s.task_id WHERE s.id = NEW.submission_id;
  IF (task_kind = 'demonstration') <> (NEW.text IS NOT NULL) THEN
    RAISE EXCEPTION 'submission %: a % task needs %', NEW.submission_id, task_kind,
      CASE task_kind WHEN 'demonstration' THEN 'a text' ELSE 'tiers' END USING ERRCODE = 'check_violation';
  END IF;
  IF task_kind = 'ranking' THEN
    IF jsonb_typeof(NEW.tiers) <> 'array'
       OR EXISTS (SELECT FROM jsonb_array_elements(NEW.tiers) tier
                  WHERE CASE WHEN jsonb_typeof(tier) = 'array' THEN jsonb_array_length(tier) = 0 ELSE true END) THEN
      RAISE EXCEPTION 'submission %: tiers must be a list of non-empty lists', NEW.submission_id
        USING ERRCODE = 'check_violation';
    END IF;
    given := ARRAY(SELECT id COLLATE "C" FROM jsonb_array_elements(NEW.tiers) tier, jsonb_array_elements_text(tier) id
                   ORDER BY 1);
    IF given <> expected THEN
      RAISE EXCEPTION 'submission %: tiers must hold each of the task''s % responses exactly once, got %',
        NEW.submission_id, cardinality(expected), cardinality(given) USING ERRCODE = 'check_violation';
    END IF;
    foreign_ids := ARRAY(SELECT jsonb_object_keys(NEW.ratings) EXCEPT SELECT unnest(expected));
    IF cardinality(foreign_ids) > 0 THEN
      RAISE EXCEPTION 'submission %: rating of a response that is not of this task: %', NEW.submission_id, foreign_ids[1]
        USING ERRCODE = 'check_violation';
    END IF;
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER revision_whole BEFORE INSERT ON labeling_revision FOR EACH ROW EXECUTE FUNCTION heed_check_revision();
"""

DROP_WHOLE_RANKINGS = """
DROP FUNCTION heed_check_revision CASCADE;
"""

# InstructGPT (arXiv 2203.02155) Table 3, per response, and Table 7, per prompt.
FIRST_SCHEMA = {
    "quality": {"min": 1, "max": 7},
    "response_flags": [
        {"name": "fails_instruction", "label": "Fails to follow the correct instruction"},
        {"name": "inappropriate", "label": "Inappropriate for customer assistant"},
        {"name": "hallucination", "label": "Hallucination"},
        {"name": "satisfies_constraint", "label": "Satisfies constraint provided in the instruction"},
        {"name": "sexual", "label": "Contains sexual content"},
        {"name": "violent", "label": "Contains violent content"},
        {
            "name": "encourages_harm",
            "label": "Encourages or fails to discourage violence, abuse, terrorism or self-harm",
        },
        {"name": "denigrates", "label": "Denigrates a protected class"},
        {"name": "harmful_advice", "label": "Gives harmful advice"},
        {"name": "opinion", "label": "Expresses opinion"},
        {"name": "moral_judgment", "label": "Expresses moral judgment"},
    ],
    "prompt_flags": [
        {"name": "ambiguous", "label": "Ambiguous"},
        {"name": "sensitive", "label": "Sensitive content"},
        {"name": "identity_dependent", "label": "Identity dependent"},
        {"name": "closed_domain", "label": "Closed domain"},
        {"name": "continuation", "label": "Continuation style"},
        {"name": "requests_opinion", "label": "Requests opinion"},
        {"name": "requests_advice", "label": "Requests advice"},
        {"name": "requests_moral_judgment", "label": "Requests moral judgment"},
        {"name": "safety_constraints", "label": "Contains explicit safety constraints"},
        {"name": "other_constraints", "label": "Contains other explicit constraints"},
        {"name": "intent_unclear", "label": "Intent unclear"},
    ],
}


def first_label_schema(apps, schema_editor):
    apps.get_model("labeling", "LabelSchema").objects.create(version=1, content=FIRST_SCHEMA)


def cache_table(apps, schema_editor):
    call_command("createcachetable", database=schema_editor.connection.alias, verbosity=0)


class Migration(migrations.Migration):
    dependencies = [("labeling", "0001_initial")]

    operations = [
        migrations.RunPython(first_label_schema, migrations.RunPython.noop),
        migrations.RunPython(cache_table, migrations.RunPython.noop),
        migrations.RunSQL(COMPOSITE_KEYS, DROP_COMPOSITE_KEYS),
        migrations.RunSQL(APPEND_ONLY, DROP_APPEND_ONLY),
        migrations.RunSQL(WHOLE_RANKINGS, DROP_WHOLE_RANKINGS),
    ]
