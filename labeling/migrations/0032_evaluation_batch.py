"""Evaluations by people: what a batch is for, instructions of their own, their figures; test prompts alone, by the database."""

from django.db import migrations, models

TEST_SPLIT = """
-- Once per statement: a batch's tasks are laid out by one.
CREATE FUNCTION heed_evaluation_split() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT 1 FROM made m JOIN labeling_batch b ON b.id = m.batch_id AND b.purpose = 'evaluation'
                             JOIN labeling_prompt p ON p.id = m.prompt_id AND p.split <> 'test') THEN
    RAISE EXCEPTION 'an evaluation takes prompts of the test split alone' USING ERRCODE = 'check_violation';
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER task_evaluation_split AFTER INSERT ON labeling_task REFERENCING NEW TABLE AS made
  FOR EACH STATEMENT EXECUTE FUNCTION heed_evaluation_split();
"""

DROP = "DROP FUNCTION heed_evaluation_split CASCADE;"

SUBJECTS = [("demonstration", "demonstration"), ("ranking", "ranking"), ("evaluation", "final evaluation")]


class Migration(migrations.Migration):
    dependencies = [
        ("labeling", "0031_prompt_once"),
    ]

    operations = [
        migrations.AddField(
            model_name="batch",
            name="purpose",
            field=models.CharField(
                choices=[("labeling", "labeling"), ("evaluation", "final evaluation")],
                db_default="labeling",
                default="labeling",
                max_length=10,
                verbose_name="purpose",
            ),
        ),
        migrations.AddConstraint(
            model_name="batch",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("purpose", "labeling"), models.Q(("kind", "ranking"), ("purpose", "evaluation")), _connector="OR"
                ),
                name="batch_purpose_valid",
            ),
        ),
        migrations.AlterField(
            model_name="instructions",
            name="kind",
            field=models.CharField(choices=SUBJECTS, max_length=13, verbose_name="about"),
        ),
        migrations.AlterField(
            model_name="instructionsdraft",
            name="kind",
            field=models.CharField(choices=SUBJECTS, max_length=13, unique=True),
        ),
        migrations.AlterField(
            model_name="statistic",
            name="kind",
            field=models.CharField(
                choices=[
                    ("throughput", "throughput"),
                    ("policies", "policies"),
                    ("agreement", "agreement"),
                    ("evaluation", "evaluation"),
                ],
                max_length=10,
            ),
        ),
        migrations.RemoveConstraint(model_name="instructions", name="instructions_kind_valid"),
        migrations.AddConstraint(
            model_name="instructions",
            constraint=models.CheckConstraint(
                condition=models.Q(("kind__in", ["demonstration", "ranking", "evaluation"])),
                name="instructions_kind_valid",
            ),
        ),
        migrations.RemoveConstraint(model_name="instructionsdraft", name="instructions_draft_kind_valid"),
        migrations.AddConstraint(
            model_name="instructionsdraft",
            constraint=models.CheckConstraint(
                condition=models.Q(("kind__in", ["demonstration", "ranking", "evaluation"])),
                name="instructions_draft_kind_valid",
            ),
        ),
        migrations.RemoveConstraint(model_name="statistic", name="statistic_kind_valid"),
        migrations.AddConstraint(
            model_name="statistic",
            constraint=models.CheckConstraint(
                condition=models.Q(("kind__in", ["throughput", "policies", "agreement", "evaluation"])),
                name="statistic_kind_valid",
            ),
        ),
        migrations.RunSQL(TEST_SPLIT, DROP),
    ]
