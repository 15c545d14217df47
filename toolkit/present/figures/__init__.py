"""Pictures by matplotlib, which takes a second to import: whoever draws imports a module of these late."""
