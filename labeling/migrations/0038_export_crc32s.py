"""CRC-32 of an export's files, so that a download of its zip can begin anywhere without reading what comes before."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("labeling", "0037_response_keys")]

    operations = [
        migrations.AddField(
            "export",
            "crc32s",
            models.JSONField(blank=True, default=dict, editable=False, help_text="Of its data files, once asked for"),
        ),
    ]
