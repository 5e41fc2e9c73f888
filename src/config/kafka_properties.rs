//! Which of librdkafka's properties are ours alone, and how the environment spells the others.

/// Properties whose values the guarantees of DESIGN 5.5 rest on.
const OWNED: [&str; 16] = [
    "acks",
    "allow.auto.create.topics",
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "group.protocol",
    "isolation.level",
    "metadata.broker.list",
    "partition.assignment.strategy",
    "request.required.acks",
    "statistics.interval.ms",
    "transactional.id",
];

/// The librdkafka name of a setting: `sasl_password`, as the environment spells it, is `sasl.password`.
pub(crate) fn property(name: &str) -> String {
    name.replace('_', ".")
}

/// True for properties that users may not set.
pub fn is_owned(name: &str) -> bool {
    OWNED.contains(&property(name).as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_our_own_properties_are_refused() {
        assert!(is_owned("enable.auto.commit") && is_owned("enable_auto_commit") && is_owned("group_id"));
        assert!(!is_owned("sasl.username") && !is_owned("ssl_ca_location"));
    }
}
