"""What the promotion gate said of a model version; who decided against it. Both are kept, and so are promotions."""

import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models

TRIGGERS = """
CREATE TRIGGER gate_check_append_only BEFORE UPDATE OR DELETE ON labeling_gatecheck
  FOR EACH ROW EXECUTE FUNCTION heed_refuse_change();
CREATE TRIGGER promotion_append_only BEFORE UPDATE OR DELETE ON labeling_promotion
  FOR EACH ROW EXECUTE FUNCTION heed_refuse_change();
"""

DROP_TRIGGERS = """
DROP TRIGGER gate_check_append_only ON labeling_gatecheck;
DROP TRIGGER promotion_append_only ON labeling_promotion;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("labeling", "0029_evaluation_measured_by"),
    ]

    operations = [
        migrations.CreateModel(
            name="GateCheck",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("rules", models.TextField(blank=True, help_text="The rules file as it was, whole")),
                ("rules_sha256", models.CharField(max_length=64)),
                ("verdicts", models.JSONField()),
                ("holds", models.BooleanField()),
                (
                    "digest",
                    models.CharField(editable=False, help_text="SHA-256 of rules and verdicts", max_length=64),
                ),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                (
                    "created_by",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "model_version",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="gate_checks",
                        to="labeling.modelversion",
                    ),
                ),
            ],
        ),
        migrations.AddConstraint(
            model_name="gatecheck",
            constraint=models.UniqueConstraint(fields=("model_version", "digest"), name="gate_check_once"),
        ),
        migrations.AddField(
            model_name="promotion",
            name="gate_check",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="promotions",
                to="labeling.gatecheck",
            ),
        ),
        migrations.AddField(
            model_name="promotion",
            name="override_by",
            field=models.CharField(blank=True, max_length=200),
        ),
        migrations.RunSQL(TRIGGERS, DROP_TRIGGERS),
    ]
