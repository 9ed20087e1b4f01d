"""A real pair of firewalls, with a client and a server, in namespaces of their own."""
