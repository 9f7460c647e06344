"""Lines of open seats, one for each batch: seats are numbered when they are opened, labelers have bookmarks in them."""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

# Numbered under a shared lock that lasts until the transaction ends: whoever holds it alone sees every number given out so far, so
# what comes later is higher. 1279872581 is labeling.actions.lines.LOCKS.
TURNS = """
CREATE SEQUENCE labeling_slot_turn;
CREATE FUNCTION heed_slot_turn() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock_shared(1279872581, NEW.batch_id::int);
  NEW.turn := nextval('labeling_slot_turn');
  RETURN NEW;
END $$;
CREATE TRIGGER slot_turn_made BEFORE INSERT ON labeling_slot FOR EACH ROW
  WHEN (NEW.status = 'open' AND NEW.turn IS NULL) EXECUTE FUNCTION heed_slot_turn();
CREATE TRIGGER slot_turn_opened BEFORE UPDATE ON labeling_slot FOR EACH ROW
  WHEN (NEW.status = 'open' AND (OLD.status <> 'open' OR NEW.turn IS NULL)) EXECUTE FUNCTION heed_slot_turn();
"""

DROP_TURNS = """
DROP TRIGGER slot_turn_opened ON labeling_slot;
DROP TRIGGER slot_turn_made ON labeling_slot;
DROP FUNCTION heed_slot_turn;
DROP SEQUENCE labeling_slot_turn;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("labeling", "0025_erasure"),
    ]

    operations = [
        migrations.CreateModel(
            name="Bookmark",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("turn", models.BigIntegerField(default=0)),
                ("seat", models.PositiveSmallIntegerField(default=0)),
                ("slot", models.BigIntegerField(default=0)),
            ],
        ),
        migrations.RemoveIndex(
            model_name="slot",
            name="slot_open",
        ),
        migrations.RemoveField(
            model_name="slot",
            name="group",
        ),
        migrations.RemoveField(
            model_name="slot",
            name="priority",
        ),
        migrations.AddField(
            model_name="slot",
            name="turn",
            field=models.BigIntegerField(
                editable=False,
                help_text="Number in the batch's line: 0 as laid out; the next higher one, by a trigger, whenever it is opened",
                null=True,
                default=0,
            ),
            preserve_default=False,
        ),
        migrations.AlterField(
            model_name="draft",
            name="labeler",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="drafts",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
        migrations.AlterField(
            model_name="draft",
            name="task",
            field=models.ForeignKey(
                db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name="drafts", to="labeling.task"
            ),
        ),
        migrations.AddIndex(
            model_name="draft",
            index=models.Index(
                models.F("labeler"), models.OrderBy(models.F("saved_at"), descending=True), name="draft_labeler"
            ),
        ),
        migrations.AddIndex(
            model_name="slot",
            index=models.Index(
                condition=models.Q(("status", "open"), ("turn", 0)), fields=["batch", "seat", "id"], name="slot_line"
            ),
        ),
        migrations.AddIndex(
            model_name="slot",
            index=models.Index(
                condition=models.Q(("status", "open"), ("turn__gt", 0)), fields=["batch", "turn"], name="slot_returned"
            ),
        ),
        migrations.AddConstraint(
            model_name="slot",
            constraint=models.CheckConstraint(
                condition=models.Q(("status", "open"), ("turn__isnull", True), _negated=True), name="slot_open_has_turn"
            ),
        ),
        migrations.AddField(
            model_name="bookmark",
            name="batch",
            field=models.ForeignKey(
                db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name="+", to="labeling.batch"
            ),
        ),
        migrations.AddField(
            model_name="bookmark",
            name="labeler",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="+",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
        migrations.AddConstraint(
            model_name="bookmark",
            constraint=models.UniqueConstraint(fields=("labeler", "batch"), name="bookmark_once"),
        ),
        migrations.RunSQL(TURNS, DROP_TURNS),
    ]
