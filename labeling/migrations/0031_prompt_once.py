from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("labeling", "0030_gate_check"),
    ]

    operations = [
        migrations.AlterField(
            model_name="prompt",
            name="content_sha256",
            field=models.CharField(db_collation="C", editable=False, max_length=64),
        ),
        migrations.AddConstraint(
            model_name="prompt",
            constraint=models.UniqueConstraint(fields=("content_sha256",), name="prompt_once"),
        ),
    ]
