//! The few ONNX protobuf messages an exported graph needs, and short constructors for them.
//!
//! In: names and numbers. Out: messages that `writer` encodes. Called by `decoder`, `bert` and `writer`. Field numbers
//! are those of the public ONNX specification (`onnx.proto`, IR version 11).

use prost::Message;

/// Versions of the file format and of the default operator set that go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Versions {
    /// IR version.
    pub ir: i64,
    /// Default operator set.
    pub operators: i64,
}

/// What every graph needs, if not more.
pub const BASE: Versions = Versions { ir: 10, operators: 21 };
/// `TensorScatter` and `Attention` with a cache came with these.
pub const WITH_SCATTER: Versions = Versions { ir: 11, operators: 24 };
/// Domain of ONNX Runtime's own operators.
pub const MICROSOFT: &str = "com.microsoft";

/// Element type of a tensor: f32.
pub const FLOAT: i32 = 1;
/// Element type of a tensor: u8.
pub const UINT8: i32 = 2;
/// Element type of a tensor: i32.
pub const INT32: i32 = 6;
/// Element type of a tensor: i64.
pub const INT64: i32 = 7;
/// Element type of a tensor: f16.
pub const FLOAT16: i32 = 10;
/// Element type of a tensor: bf16.
pub const BFLOAT16: i32 = 16;

/// A whole model file.
#[derive(Clone, PartialEq, Message)]
pub struct ModelProto {
    /// Version of the file format.
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    /// Name of the tool that wrote it.
    #[prost(string, tag = "2")]
    pub producer_name: String,
    /// Version of that tool's output.
    #[prost(string, tag = "3")]
    pub producer_version: String,
    /// The graph.
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    /// Operator sets in use.
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetIdProto>,
    /// Free key-value pairs.
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

/// Version of one operator domain.
#[derive(Clone, PartialEq, Message)]
pub struct OperatorSetIdProto {
    /// Domain, empty for ONNX itself.
    #[prost(string, tag = "1")]
    pub domain: String,
    /// Version.
    #[prost(int64, tag = "2")]
    pub version: i64,
}

/// A key and its value.
#[derive(Clone, PartialEq, Message)]
pub struct StringStringEntryProto {
    /// Key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// Nodes, constants, inputs and outputs.
#[derive(Clone, PartialEq, Message)]
pub struct GraphProto {
    /// Nodes in topological order.
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    /// Name of the graph.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Constants.
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    /// Inputs.
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    /// Outputs.
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
}

/// One operator call.
#[derive(Clone, PartialEq, Message)]
pub struct NodeProto {
    /// Names of the inputs; empty = left out.
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    /// Names of the outputs; empty = left out.
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    /// Unique name.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Operator.
    #[prost(string, tag = "4")]
    pub op_type: String,
    /// Attributes.
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
    /// Domain of the operator.
    #[prost(string, tag = "7")]
    pub domain: String,
}

/// One attribute; `type` says which field counts.
#[derive(Clone, PartialEq, Message)]
pub struct AttributeProto {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Value of type 1.
    #[prost(float, tag = "2")]
    pub f: f32,
    /// Value of type 2.
    #[prost(int64, tag = "3")]
    pub i: i64,
    /// Values of type 7.
    #[prost(int64, repeated, tag = "8")]
    pub ints: Vec<i64>,
    /// 1 = `f`, 2 = `i`, 7 = `ints`.
    #[prost(int32, tag = "20")]
    pub r#type: i32,
}

/// A constant: inline in `raw_data`, or a range of the data file.
#[derive(Clone, PartialEq, Message)]
pub struct TensorProto {
    /// Shape.
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    /// Element type.
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    /// Name.
    #[prost(string, tag = "8")]
    pub name: String,
    /// Little-endian values when inline.
    #[prost(bytes = "vec", tag = "9")]
    pub raw_data: Vec<u8>,
    /// `location`, `offset`, `length` when external.
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<StringStringEntryProto>,
    /// 0 = inline, 1 = external.
    #[prost(int32, tag = "14")]
    pub data_location: i32,
}

/// Name and type of a graph input or output.
#[derive(Clone, PartialEq, Message)]
pub struct ValueInfoProto {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Type.
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
}

/// A type; only tensors are used.
#[derive(Clone, PartialEq, Message)]
pub struct TypeProto {
    /// Tensor type.
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorTypeProto>,
}

/// Element type and shape.
#[derive(Clone, PartialEq, Message)]
pub struct TensorTypeProto {
    /// Element type.
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    /// Shape.
    #[prost(message, optional, tag = "2")]
    pub shape: Option<TensorShapeProto>,
}

/// A shape.
#[derive(Clone, PartialEq, Message)]
pub struct TensorShapeProto {
    /// Dimensions.
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<DimensionProto>,
}

/// One dimension: a number or a symbol.
#[derive(Clone, PartialEq, Message)]
pub struct DimensionProto {
    /// Number or symbol.
    #[prost(oneof = "Dim", tags = "1, 2")]
    pub value: Option<Dim>,
}

/// Length of a dimension.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Dim {
    /// Fixed.
    #[prost(int64, tag = "1")]
    Value(i64),
    /// Known when the graph runs; equal names mean equal lengths.
    #[prost(string, tag = "2")]
    Param(String),
}

/// A fixed dimension.
pub fn fixed(length: usize) -> Dim {
    Dim::Value(length as i64)
}

/// A symbolic dimension.
pub fn symbol(name: &str) -> Dim {
    Dim::Param(name.to_owned())
}

/// A graph input or output: name, element type, shape.
pub fn value(name: &str, elem_type: i32, dims: &[Dim]) -> ValueInfoProto {
    let dim = dims.iter().cloned().map(|length| DimensionProto { value: Some(length) }).collect();
    let tensor_type = TensorTypeProto { elem_type, shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
}

/// An integer attribute.
pub fn int(name: &str, number: i64) -> AttributeProto {
    AttributeProto { name: name.to_owned(), i: number, r#type: 2, ..AttributeProto::default() }
}

/// A float attribute.
pub fn float(name: &str, number: f32) -> AttributeProto {
    AttributeProto { name: name.to_owned(), f: number, r#type: 1, ..AttributeProto::default() }
}

/// An attribute that is a list of integers.
pub fn ints(name: &str, numbers: &[i64]) -> AttributeProto {
    AttributeProto { name: name.to_owned(), ints: numbers.to_vec(), r#type: 7, ..AttributeProto::default() }
}

/// A node of the default domain, named after its first output.
pub fn node(op: &str, inputs: &[&str], outputs: &[&str], attributes: Vec<AttributeProto>) -> NodeProto {
    let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    NodeProto {
        input: owned(inputs),
        output: owned(outputs),
        name: format!("node.{}", outputs.first().copied().unwrap_or_default()),
        op_type: op.to_owned(),
        attribute: attributes,
        domain: String::new(),
    }
}

/// A node of ONNX Runtime's own domain.
pub fn microsoft(op: &str, inputs: &[&str], outputs: &[&str], attributes: Vec<AttributeProto>) -> NodeProto {
    NodeProto { domain: MICROSOFT.to_owned(), ..node(op, inputs, outputs, attributes) }
}
