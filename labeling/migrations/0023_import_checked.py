"""Imports of before intake count as checked, as their prompts do."""

from django.db import migrations

CHECKED = """
UPDATE labeling_import SET checked = (counts ->> 'prompts_new')::int
 WHERE counts ? 'prompts_new'
   AND id NOT IN (SELECT DISTINCT imported_in_id FROM labeling_prompt WHERE imported_in_id IS NOT NULL)
"""


class Migration(migrations.Migration):
    dependencies = [
        ("labeling", "0022_intake"),
    ]

    operations = [
        migrations.RunSQL(CHECKED, migrations.RunSQL.noop),
    ]
