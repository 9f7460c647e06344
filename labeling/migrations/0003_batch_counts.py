from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("labeling", "0002_invariants")]

    operations = [
        migrations.AddField(
            model_name="batch",
            name="counts",
            field=models.JSONField(blank=True, default=dict, help_text="Tasks made, and prompts left out by reason"),
        ),
    ]
