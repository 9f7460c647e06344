"""Intake: the state of every prompt, why it is held back, and what was decided. Prompts that are here already are open."""

import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models

TRIGGERS = """
CREATE TRIGGER intake_decision_append_only BEFORE UPDATE OR DELETE ON labeling_intakedecision
  FOR EACH ROW EXECUTE FUNCTION heed_refuse_change();

-- Nothing that is not open is labeled: a task needs an open prompt, and a prompt with tasks stays open.
CREATE FUNCTION heed_check_task_prompts() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  closed record;
BEGIN
  SELECT p.uuid, p.intake INTO closed FROM made JOIN labeling_prompt p ON p.id = made.prompt_id WHERE p.intake <> 'open' LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'prompt % is not open (intake: %)', closed.uuid, closed.intake USING ERRCODE = 'check_violation';
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER task_prompt_is_open AFTER INSERT ON labeling_task REFERENCING NEW TABLE AS made
  FOR EACH STATEMENT EXECUTE FUNCTION heed_check_task_prompts();

CREATE FUNCTION heed_check_prompt_stays_open() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM labeling_task t WHERE t.prompt_id = NEW.id) THEN
    RAISE EXCEPTION 'prompt % has tasks: it stays open', NEW.uuid USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER prompt_stays_open BEFORE UPDATE OF intake ON labeling_prompt FOR EACH ROW
  WHEN (OLD.intake = 'open' AND NEW.intake <> 'open') EXECUTE FUNCTION heed_check_prompt_stays_open();
"""

DROP_TRIGGERS = """
DROP FUNCTION heed_check_task_prompts CASCADE;
DROP FUNCTION heed_check_prompt_stays_open CASCADE;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("labeling", "0021_work_entry_ties"),
    ]

    operations = [
        migrations.CreateModel(
            name="Finding",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "reason",
                    models.CharField(
                        choices=[
                            ("personal_data", "personal data"),
                            ("near_copy", "near copy"),
                            ("same_beginning", "same long beginning"),
                            ("author_full", "too many by one author"),
                            ("organization_full", "too many by one organization"),
                        ],
                        max_length=17,
                    ),
                ),
                ("spans", models.JSONField(blank=True, default=list)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
            ],
        ),
        migrations.CreateModel(
            name="IntakeDecision",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("verdict", models.CharField(choices=[("released", "released"), ("refused", "refused")], max_length=8)),
                ("comment", models.TextField(blank=True)),
                ("decided_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
            ],
        ),
        migrations.CreateModel(
            name="LikenessKey",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "key", "prompt_id", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("key", models.BigIntegerField()),
                ("prompt_id", models.BigIntegerField()),
            ],
        ),
        migrations.AddField(
            model_name="import",
            name="checked",
            field=models.PositiveIntegerField(
                db_default=0, default=0, help_text="Of its new prompts: those that intake has looked at"
            ),
        ),
        migrations.AddField(
            model_name="import",
            name="held",
            field=models.PositiveIntegerField(db_default=0, default=0, help_text="Of these: those that it held back"),
        ),
        migrations.AddField(
            model_name="prompt",
            name="imported_in",
            field=models.ForeignKey(
                blank=True,
                db_index=False,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="prompts",
                to="labeling.import",
            ),
        ),
        migrations.AddField(
            model_name="prompt",
            name="intake",
            # Prompts of before the migration count as open.
            field=models.CharField(
                choices=[
                    ("waiting", "waiting for checks"),
                    ("open", "open"),
                    ("held", "held for a person to decide"),
                    ("refused", "refused"),
                ],
                db_default="open",
                default="waiting",
                editable=False,
                max_length=7,
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
                ],
                db_default="waiting",
                default="waiting",
                editable=False,
                max_length=7,
            ),
        ),
        migrations.AddField(
            model_name="prompt",
            name="language",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                editable=False,
                help_text="ISO 639; empty: cannot be told",
                max_length=8,
            ),
        ),
        migrations.AddField(
            model_name="prompt",
            name="original",
            field=models.JSONField(
                blank=True,
                editable=False,
                help_text="The messages as they came, where intake normalised them",
                null=True,
            ),
        ),
        migrations.AddIndex(
            model_name="prompt",
            index=models.Index(condition=models.Q(("intake", "waiting")), fields=["id"], name="prompt_waiting"),
        ),
        migrations.AddIndex(
            model_name="prompt",
            index=models.Index(
                condition=models.Q(("intake__in", ["held", "refused"])),
                fields=["intake", "imported_in", "id"],
                name="prompt_held",
            ),
        ),
        migrations.AddIndex(
            model_name="prompt",
            index=models.Index(
                condition=models.Q(("intake", "open"), models.Q(("organization", ""), _negated=True)),
                fields=["organization"],
                name="prompt_organization",
            ),
        ),
        migrations.AddConstraint(
            model_name="prompt",
            constraint=models.CheckConstraint(
                condition=models.Q(("intake__in", ["waiting", "open", "held", "refused"])), name="prompt_intake_valid"
            ),
        ),
        migrations.AddField(
            model_name="finding",
            name="like",
            field=models.ForeignKey(
                blank=True,
                help_text="Of which it is a copy",
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="+",
                to="labeling.prompt",
            ),
        ),
        migrations.AddField(
            model_name="finding",
            name="prompt",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="findings", to="labeling.prompt"
            ),
        ),
        migrations.AddField(
            model_name="intakedecision",
            name="decided_by",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddField(
            model_name="intakedecision",
            name="prompt",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="intake_decisions", to="labeling.prompt"
            ),
        ),
        migrations.AddIndex(
            model_name="finding",
            index=models.Index(fields=["reason", "prompt"], name="finding_reason"),
        ),
        migrations.AddConstraint(
            model_name="finding",
            constraint=models.UniqueConstraint(fields=("prompt", "reason"), name="finding_reason_once"),
        ),
        migrations.AddConstraint(
            model_name="finding",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("reason__in", ["personal_data", "near_copy", "same_beginning", "author_full", "organization_full"])
                ),
                name="finding_reason_valid",
            ),
        ),
        migrations.AddConstraint(
            model_name="intakedecision",
            constraint=models.CheckConstraint(
                condition=models.Q(("verdict__in", ["released", "refused"])), name="intake_verdict_valid"
            ),
        ),
        migrations.RunSQL(TRIGGERS, DROP_TRIGGERS),
    ]
