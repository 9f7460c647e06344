"""Looks: who was shown others' answers to a task."""

import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models

KEPT = """
CREATE TRIGGER look_append_only BEFORE UPDATE OR DELETE ON labeling_look
  FOR EACH ROW EXECUTE FUNCTION heed_refuse_change();
"""

DROP_KEPT = "DROP TRIGGER look_append_only ON labeling_look;"


class Migration(migrations.Migration):
    dependencies = [
        ("labeling", "0034_exercise_schema"),
    ]

    operations = [
        migrations.CreateModel(
            name="Look",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "seen_at",
                    models.DateTimeField(
                        default=django.utils.timezone.now, editable=False, help_text="For the first time"
                    ),
                ),
                (
                    "labeler",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "task",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="looks", to="labeling.task"
                    ),
                ),
            ],
            options={
                "constraints": [models.UniqueConstraint(fields=("labeler", "task"), name="look_once")],
            },
        ),
        migrations.RunSQL(KEPT, DROP_KEPT),
    ]
