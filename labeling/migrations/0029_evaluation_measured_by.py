from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("labeling", "0028_webhook"),
    ]

    operations = [
        migrations.AddField(
            model_name="evaluation",
            name="measured_by",
            field=models.CharField(
                choices=[
                    ("people", "people"),
                    ("model", "a model"),
                    ("task", "tasks"),
                    ("labels", "labels of an export"),
                    ("simulation", "simulated labelers"),
                    ("unstated", "not stated"),
                ],
                default="unstated",
                max_length=10,
            ),
        ),
        migrations.AlterField(
            model_name="evaluation",
            name="digest",
            field=models.CharField(
                editable=False,
                help_text="SHA-256 of name, metrics, config and, where stated, what measured it",
                max_length=64,
            ),
        ),
        migrations.AddConstraint(
            model_name="evaluation",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("measured_by__in", ["people", "model", "task", "labels", "simulation", "unstated"])
                ),
                name="evaluation_measured_by_known",
            ),
        ),
    ]
