"""What keeps a process of ours to its work: no network, few files, no credentials. Raised before anything of others is imported."""
