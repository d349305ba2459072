"""A real Hadoop on one machine's loopback, from Maven Central's jars; standard library only."""
