"""Time worked on prompts that labelers write, and on exercises."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("labeling", "0019_writing"),
    ]

    operations = [
        migrations.AddField(
            model_name="attempt",
            name="active_seconds",
            field=models.FloatField(default=0, help_text="Time worked, idle time excluded"),
        ),
        migrations.AddField(
            model_name="attempt",
            name="worked_at",
            field=models.DateTimeField(blank=True, help_text="The last sign of work: opened or saved", null=True),
        ),
        migrations.AddField(
            model_name="writing",
            name="active_seconds",
            field=models.FloatField(default=0, help_text="Time worked, idle time excluded"),
        ),
        migrations.AddField(
            model_name="writing",
            name="page_seconds",
            field=models.JSONField(blank=True, default=dict, help_text="Loading of the page → seconds it has claimed"),
        ),
    ]
