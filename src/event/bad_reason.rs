//! Why a record with an event or an item is set aside: metric labels, headers of dead letters, `taiji dlq --reason`.

/// Why a record is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BadReason {
    /// Larger than `kafka.max_record_bytes`.
    TooLarge,
    /// No value, or an item without a key to name it.
    Null,
    /// The content type is none we read.
    ContentType,
    /// Framed by a schema registry's serialiser.
    SchemaRegistry,
    /// Not JSON.
    Json,
    /// Not the protobuf message.
    Protobuf,
    /// A field is missing or wrong.
    Field,
    /// A header's name is not text.
    Headers,
    /// The store cannot take it whatever we do: what it keeps of that user cannot be read.
    Store,
    /// The catalogue has no room for the item.
    Full,
}

impl BadReason {
    /// All of them, for metrics that start at zero.
    pub const ALL: [BadReason; 10] = [
        BadReason::TooLarge,
        BadReason::Null,
        BadReason::ContentType,
        BadReason::SchemaRegistry,
        BadReason::Json,
        BadReason::Protobuf,
        BadReason::Field,
        BadReason::Headers,
        BadReason::Store,
        BadReason::Full,
    ];

    /// Label in metrics and headers, and what `taiji dlq --reason` takes.
    pub fn as_str(self) -> &'static str {
        match self {
            BadReason::TooLarge => "too_large",
            BadReason::Null => "null",
            BadReason::ContentType => "content_type",
            BadReason::SchemaRegistry => "schema_registry",
            BadReason::Json => "json",
            BadReason::Protobuf => "protobuf",
            BadReason::Field => "field",
            BadReason::Headers => "headers",
            BadReason::Store => "store",
            BadReason::Full => "full",
        }
    }

    /// The stage in Kafka Connect's vocabulary.
    pub fn stage(self) -> &'static str {
        match self {
            BadReason::Headers => "HEADER_CONVERTER",
            BadReason::Store => "TASK_PUT",
            _ => "VALUE_CONVERTER",
        }
    }
}
