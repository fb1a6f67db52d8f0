"""Workers, children, connections and the server are killed at random moments; nothing is lost."""
