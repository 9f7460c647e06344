"""The REST API: thin doors to the same actions as the pages. Tokens, scopes, problem JSON, keyset pages."""
