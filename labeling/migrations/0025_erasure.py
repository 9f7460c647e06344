"""Erasures of authors: who was erased is not known any more, that and when is."""

import uuid

import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models

TRIGGERS = """
CREATE TRIGGER erasure_append_only BEFORE UPDATE OR DELETE ON labeling_erasure
  FOR EACH ROW EXECUTE FUNCTION heed_refuse_change();

CREATE OR REPLACE FUNCTION heed_check_prompt_stays_open() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF current_setting('heed.erasure', true) IS DISTINCT FROM 'on'
     AND EXISTS (SELECT FROM labeling_task t WHERE t.prompt_id = NEW.id) THEN
    RAISE EXCEPTION 'prompt % has tasks: it stays open', NEW.uuid USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END $$;
"""

DROP_TRIGGERS = """
DROP TRIGGER erasure_append_only ON labeling_erasure;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("labeling", "0024_token_scope"),
    ]

    operations = [
        migrations.CreateModel(
            name="Erasure",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("uuid", models.UUIDField(default=uuid.uuid4, editable=False, unique=True)),
                ("pseudonym", models.CharField(max_length=20)),
                ("reason", models.TextField(help_text="As a reference to the request: it must not name the person")),
                ("counts", models.JSONField(default=dict, help_text="Rows that were redacted, by what they are")),
                ("erased_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
            ],
        ),
        migrations.RemoveConstraint(
            model_name="prompt",
            name="prompt_intake_valid",
        ),
        migrations.AddField(
            model_name="export",
            name="withdrawn_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="export",
            name="withdrawn_by",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
        migrations.AddField(
            model_name="submission",
            name="erased_at",
            field=models.DateTimeField(
                editable=False, help_text="Redacted with its author: exported nowhere", null=True
            ),
        ),
        migrations.AlterField(
            model_name="prompt",
            name="intake",
            field=models.CharField(
                choices=[
                    ("waiting", "waiting for checks"),
                    ("open", "open"),
                    ("held", "held for a person to decide"),
                    ("refused", "refused"),
                    ("erased", "erased"),
                ],
                db_default="waiting",
                default="waiting",
                editable=False,
                max_length=7,
            ),
        ),
        migrations.AddConstraint(
            model_name="prompt",
            constraint=models.CheckConstraint(
                condition=models.Q(("intake__in", ["waiting", "open", "held", "refused", "erased"])),
                name="prompt_intake_valid",
            ),
        ),
        migrations.AddField(
            model_name="erasure",
            name="erased_by",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddField(
            model_name="erasure",
            name="exports",
            field=models.ManyToManyField(
                help_text="Those that held something of the person when it was erased",
                related_name="erasures",
                to="labeling.export",
            ),
        ),
        migrations.AddConstraint(
            model_name="erasure",
            constraint=models.CheckConstraint(
                condition=models.Q(("reason", ""), _negated=True), name="erasure_has_reason"
            ),
        ),
        migrations.RunSQL(TRIGGERS, DROP_TRIGGERS),
    ]
