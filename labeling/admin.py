"""Django's admin, for admins: everything that has no page of its own."""

