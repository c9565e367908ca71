"""HTTP: API, webhooks, pages, access; and the composition root."""
