"""Less to keep up for every row of an import: indexes of what is rare alone, none twice, an author held by one key and not by two."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("labeling", "0035_look"),
    ]

    operations = [
        migrations.RemoveIndex(
            model_name="prompt",
            name="prompt_split",
        ),
        migrations.AlterField(
            model_name="prompt",
            name="author",
            field=models.ForeignKey(
                blank=True,
                db_constraint=False,
                db_index=False,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="prompts",
                to="labeling.author",
            ),
        ),
        migrations.AlterField(
            model_name="response",
            name="prompt",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="responses",
                to="labeling.prompt",
            ),
        ),
        migrations.AddIndex(
            model_name="prompt",
            index=models.Index(
                condition=models.Q(("split", "train"), _negated=True), fields=["split", "id"], name="prompt_split"
            ),
        ),
        migrations.AddIndex(
            model_name="prompt",
            index=models.Index(condition=models.Q(("author__isnull", False)), fields=["author"], name="prompt_author"),
        ),
    ]
