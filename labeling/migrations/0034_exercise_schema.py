"""Exercises keep the form that they were made with: the version in force at that time."""

import django.db.models.deletion
from django.db import migrations, models
from django.db.models import OuterRef, Subquery
from django.db.models.functions import Coalesce


def pin(apps, schema_editor) -> None:
    """The newest version made before the exercise; the first of all where it was made before any."""
    versions = apps.get_model("labeling", "LabelSchema").objects
    before = versions.filter(created_at__lte=OuterRef("created_at")).order_by("-version").values("pk")[:1]
    first = versions.order_by("version").values("pk")[:1]
    apps.get_model("labeling", "Exercise").objects.update(schema=Coalesce(Subquery(before), Subquery(first)))


class Migration(migrations.Migration):
    atomic = False  # PostgreSQL alters no table that has changed rows in the same transaction

    dependencies = [("labeling", "0033_eligibility")]

    operations = [
        migrations.AddField(
            model_name="exercise",
            name="schema",
            field=models.ForeignKey(
                help_text="Whose flags it asks for, by whose labels and on whose scale; later versions do not change it",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="labeling.labelschema",
            ),
        ),
        migrations.RunPython(pin, migrations.RunPython.noop),
        migrations.AlterField(
            model_name="exercise",
            name="schema",
            field=models.ForeignKey(
                help_text="Whose flags it asks for, by whose labels and on whose scale; later versions do not change it",
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="labeling.labelschema",
            ),
        ),
    ]
