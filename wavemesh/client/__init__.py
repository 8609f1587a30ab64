"""The operator's API as a service calls it: typed, over mutual TLS, with deadlines, pages, retries and watches."""
