"""Eligibility: languages and skills that people have, and that batches ask for."""

import django.contrib.postgres.fields
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("labeling", "0032_evaluation_batch"),
    ]

    operations = [
        migrations.AddField(
            model_name="batch",
            name="language",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="ISO 639 code; only for labelers who know it. Empty: any",
                max_length=3,
                verbose_name="language",
            ),
        ),
        migrations.AddField(
            model_name="batch",
            name="skills",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.CharField(max_length=50),
                blank=True,
                db_default=[],
                default=list,
                help_text="only for labelers who have all of them",
                size=None,
                verbose_name="skills",
            ),
        ),
        migrations.AddField(
            model_name="user",
            name="languages",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.CharField(max_length=3),
                blank=True,
                db_default=[],
                default=list,
                help_text="ISO 639 codes that they read and write well, as they say",
                size=None,
                verbose_name="languages",
            ),
        ),
        migrations.AddField(
            model_name="user",
            name="skills",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.CharField(max_length=50),
                blank=True,
                db_default=[],
                default=list,
                help_text="Names that an admin has given them; batches may ask for some",
                size=None,
                verbose_name="skills",
            ),
        ),
    ]
