#!/usr/bin/env bash
# Apache Kafka for the tests: its jars, pinned by version, out of Maven Central into the cache folder, once a machine.
# Prints the folder of the jars. Exit code 69 where Java, Maven or Maven Central are not there.
set -euo pipefail

version=4.1.1
scala=2.13
cache=${XDG_CACHE_HOME:-$HOME/.cache}/taiji
folder=$cache/kafka-$version

say() { printf 'kafka: %s\n' "$*" >&2; }

# The jars are there, and they are what they should be.
whole() {
  [ -f "$1/kafka_$scala-$version.jar" ] && [ -f "$1/kafka-clients-$version.jar" ] && [ "$(cat "$1/version" 2>/dev/null)" = "$version" ]
}

if ! whole "$folder"; then
  for tool in java mvn; do
    command -v "$tool" >/dev/null || {
      say "$tool is missing: run \`make setup\` first"
      exit 69
    }
  done
  mkdir -p "$cache"
  fresh=$(mktemp -d "$cache/kafka.XXXXXX")
  trap 'rm -rf "$fresh"' EXIT
  cat >"$fresh/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>taiji</groupId><artifactId>test-broker</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_$scala</artifactId><version>$version</version></dependency>
  </dependencies>
</project>
POM
  say "fetching Apache Kafka $version"
  if ! mvn -q -B -f "$fresh/pom.xml" dependency:copy-dependencies -DoutputDirectory="$fresh/libs" >"$fresh/log" 2>&1; then
    tail -n 5 "$fresh/log" >&2
    say "Maven Central cannot be reached, or has no Kafka $version"
    exit 69
  fi
  # The first word of the broker's own version line.
  found=$(java -cp "$fresh/libs/*" kafka.Kafka --version 2>/dev/null | tail -n 1 | cut -d' ' -f1)
  if [ "$found" != "$version" ]; then
    say "the jars say they are Kafka $found, not $version"
    exit 69
  fi
  echo "$version" >"$fresh/libs/version"
  # Another run may have been quicker.
  whole "$folder" || { rm -rf "$folder" && mv "$fresh/libs" "$folder"; }
fi
echo "$folder"
