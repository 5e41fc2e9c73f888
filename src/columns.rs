//! Parquet files of a few flat columns: the catalogue and the users of a generation.
//!
//! Any Parquet reader opens them; we write one row group, Snappy, no statistics beyond the defaults.

use parquet::basic::{Compression, ConvertedType, Repetition, Type as PhysicalType};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int32Type};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// The values of one column, `None` = null.
#[derive(Debug, Clone, PartialEq)]
pub enum ColumnData {
    /// Text or binary.
    Bytes(Vec<Option<Vec<u8>>>),
    /// 32-bit integers.
    Int(Vec<Option<i32>>),
    /// 64-bit floats.
    Double(Vec<Option<f64>>),
}

/// A named column.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    name: &'static str,
    text: bool,
    data: ColumnData,
}

impl Column {
    /// A column that readers show as text.
    pub fn utf8(name: &'static str, data: ColumnData) -> Column {
        Column { name, text: true, data }
    }

    /// A binary or numeric column.
    pub fn binary(name: &'static str, data: ColumnData) -> Column {
        Column { name, text: false, data }
    }

    fn schema(&self) -> Result<Arc<Type>, parquet::errors::ParquetError> {
        let physical = match self.data {
            ColumnData::Bytes(_) => PhysicalType::BYTE_ARRAY,
            ColumnData::Int(_) => PhysicalType::INT32,
            ColumnData::Double(_) => PhysicalType::DOUBLE,
        };
        let converted = if self.text { ConvertedType::UTF8 } else { ConvertedType::NONE };
        let built = Type::primitive_type_builder(self.name, physical)
            .with_repetition(Repetition::OPTIONAL)
            .with_converted_type(converted)
            .build()?;
        Ok(Arc::new(built))
    }
}

/// Writes the columns (all of one length) as one row group.
pub fn write_columns(path: &Path, columns: &[Column]) -> Result<(), String> {
    write_inner(path, columns).map_err(|error| error.to_string())
}

fn write_inner(path: &Path, columns: &[Column]) -> Result<(), parquet::errors::ParquetError> {
    let fields = columns.iter().map(Column::schema).collect::<Result<Vec<_>, _>>()?;
    let schema = Arc::new(Type::group_type_builder("taiji").with_fields(fields).build()?);
    let properties =
        WriterProperties::builder().set_compression(Compression::SNAPPY).set_created_by("taiji".to_string()).build();
    let mut writer = SerializedFileWriter::new(File::create(path)?, schema, Arc::new(properties))?;
    let mut group = writer.next_row_group()?;
    let mut remaining = columns.iter();
    while let (Some(mut target), Some(column)) = (group.next_column()?, remaining.next()) {
        match &column.data {
            ColumnData::Bytes(rows) => {
                let values: Vec<ByteArray> = rows.iter().flatten().map(|row| ByteArray::from(row.clone())).collect();
                target.typed::<ByteArrayType>().write_batch(&values, Some(&levels(rows)), None)?;
            }
            ColumnData::Int(rows) => {
                let values: Vec<i32> = rows.iter().flatten().copied().collect();
                target.typed::<Int32Type>().write_batch(&values, Some(&levels(rows)), None)?;
            }
            ColumnData::Double(rows) => {
                let values: Vec<f64> = rows.iter().flatten().copied().collect();
                target.typed::<DoubleType>().write_batch(&values, Some(&levels(rows)), None)?;
            }
        }
        target.close()?;
    }
    group.close()?;
    writer.close()?;
    Ok(())
}

/// Definition levels of an optional flat column: 1 = present, 0 = null.
fn levels<T>(rows: &[Option<T>]) -> Vec<i16> {
    rows.iter().map(|row| i16::from(row.is_some())).collect()
}

/// Reads the named columns, in the order asked; a missing column or another type is an error.
pub fn read_columns(path: &Path, names: &[&str]) -> Result<Vec<ColumnData>, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let reader = SerializedFileReader::new(file).map_err(|error| error.to_string())?;
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    let mut places = Vec::new();
    let mut columns = Vec::new();
    for name in names {
        let place = (0..schema.num_columns())
            .find(|index| schema.column(*index).name() == *name)
            .ok_or_else(|| format!("column {name} is missing"))?;
        places.push(place);
        columns.push(match schema.column(place).physical_type() {
            PhysicalType::BYTE_ARRAY => ColumnData::Bytes(Vec::new()),
            PhysicalType::INT32 => ColumnData::Int(Vec::new()),
            PhysicalType::DOUBLE => ColumnData::Double(Vec::new()),
            other => return Err(format!("column {name} has the unknown type {other}")),
        });
    }
    for row in reader.get_row_iter(None).map_err(|error| error.to_string())? {
        let row = row.map_err(|error| error.to_string())?;
        push_row(&row, &places, &mut columns)?;
    }
    Ok(columns)
}

fn push_row(row: &Row, places: &[usize], columns: &mut [ColumnData]) -> Result<(), String> {
    let fields: Vec<&Field> = row.get_column_iter().map(|(_, field)| field).collect();
    for (place, column) in places.iter().zip(columns) {
        match (column, fields.get(*place)) {
            (ColumnData::Bytes(rows), Some(Field::Str(text))) => rows.push(Some(text.clone().into_bytes())),
            (ColumnData::Bytes(rows), Some(Field::Bytes(bytes))) => rows.push(Some(bytes.data().to_vec())),
            (ColumnData::Bytes(rows), Some(Field::Null)) => rows.push(None),
            (ColumnData::Int(rows), Some(Field::Int(value))) => rows.push(Some(*value)),
            (ColumnData::Int(rows), Some(Field::Null)) => rows.push(None),
            (ColumnData::Double(rows), Some(Field::Double(value))) => rows.push(Some(*value)),
            (ColumnData::Double(rows), Some(Field::Null)) => rows.push(None),
            (_, field) => return Err(format!("unexpected value {field:?} in column {place}")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_with_nulls_come_back_in_the_order_asked() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("t.parquet");
        let text = ColumnData::Bytes(vec![Some(b"a".to_vec()), None]);
        let int = ColumnData::Int(vec![None, Some(7)]);
        let double = ColumnData::Double(vec![Some(1.5), None]);
        let columns = [
            Column::utf8("text", text.clone()),
            Column::binary("int", int.clone()),
            Column::binary("double", double.clone()),
        ];
        write_columns(&path, &columns).expect("write");
        let back = read_columns(&path, &["double", "text", "int"]).expect("read");
        assert_eq!(back, [double, text, int]);
        assert!(read_columns(&path, &["nope"]).expect_err("missing").contains("nope"));
    }
}
