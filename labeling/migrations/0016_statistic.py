"""Statistics kept by a job; the batch of a submission beside it, so that counting by batch reads one index."""

import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models

FILL = """
UPDATE labeling_submission s SET batch_id = t.batch_id FROM labeling_task t WHERE t.id = s.task_id;
SET CONSTRAINTS ALL IMMEDIATE;

-- Whoever writes a submission need not name its batch, and cannot name another.
CREATE FUNCTION heed_submission_batch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.batch_id := (SELECT batch_id FROM labeling_task WHERE id = NEW.task_id);
  RETURN NEW;
END $$;
CREATE TRIGGER submission_batch BEFORE INSERT OR UPDATE OF task_id, batch_id ON labeling_submission
  FOR EACH ROW EXECUTE FUNCTION heed_submission_batch();
ALTER TABLE labeling_task ADD CONSTRAINT task_id_batch_unique UNIQUE (id, batch_id);
ALTER TABLE labeling_submission ADD CONSTRAINT submission_batch_is_tasks
  FOREIGN KEY (task_id, batch_id) REFERENCES labeling_task (id, batch_id);
"""

DROP = """
ALTER TABLE labeling_submission DROP CONSTRAINT submission_batch_is_tasks;
ALTER TABLE labeling_task DROP CONSTRAINT task_id_batch_unique;
DROP FUNCTION heed_submission_batch CASCADE;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("labeling", "0015_unread_feedback"),
    ]

    operations = [
        migrations.CreateModel(
            name="Statistic",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "kind",
                    models.CharField(
                        choices=[("throughput", "throughput"), ("policies", "policies"), ("agreement", "agreement")],
                        max_length=10,
                    ),
                ),
                ("scope", models.JSONField()),
                ("content", models.JSONField(blank=True, null=True)),
                ("mark", models.CharField(blank=True, max_length=60)),
                ("seconds", models.FloatField(blank=True, help_text="How long the last computation took", null=True)),
                ("computed_at", models.DateTimeField(blank=True, null=True)),
                ("looked_at", models.DateTimeField(default=django.utils.timezone.now)),
            ],
        ),
        migrations.AddField(
            model_name="submission",
            name="batch",
            field=models.ForeignKey(
                db_constraint=False,
                db_index=False,
                editable=False,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="submissions",
                to="labeling.batch",
            ),
        ),
        migrations.RunSQL(FILL, DROP),
        migrations.AlterField(
            model_name="submission",
            name="batch",
            field=models.ForeignKey(
                db_constraint=False,
                db_index=False,
                editable=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="submissions",
                to="labeling.batch",
            ),
        ),
        migrations.AddIndex(
            model_name="slot",
            index=models.Index(
                condition=models.Q(("status", "submitted")), fields=["batch", "submitted_at"], name="slot_submitted"
            ),
        ),
        migrations.AddIndex(
            model_name="submission",
            index=models.Index(fields=["batch", "status", "is_surplus", "id"], name="submission_batch"),
        ),
        migrations.AddIndex(
            model_name="submission",
            index=models.Index(fields=["batch", "id"], name="submission_batch_newest"),
        ),
        migrations.AddConstraint(
            model_name="statistic",
            constraint=models.UniqueConstraint(fields=("kind", "scope"), name="statistic_once"),
        ),
        migrations.AddConstraint(
            model_name="statistic",
            constraint=models.CheckConstraint(
                condition=models.Q(("kind__in", ["throughput", "policies", "agreement"])), name="statistic_kind_valid"
            ),
        ),
        migrations.AddConstraint(
            model_name="statistic",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("computed_at__isnull", True), ("content__isnull", True)),
                    models.Q(("computed_at__isnull", False), ("content__isnull", False)),
                    _connector="OR",
                ),
                name="statistic_content_with_time",
            ),
        ),
    ]
