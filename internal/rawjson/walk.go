package rawjson

import (
	"bytes"
	"encoding"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
)

var (
	marshaler       = reflect.TypeFor[json.Marshaler]()
	textMarshaler   = reflect.TypeFor[encoding.TextMarshaler]()
	unmarshaler     = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// field is a field of a struct as encoding/json sees it.
type field struct {
	name      string
	index     []int
	omitEmpty bool
	omitZero  bool
}

var known sync.Map // reflect.Type -> []field

// fieldsOf returns the fields of a struct, those of embedded ones in their place. A
// name that two of them have is refused: what encoding/json makes of that is no format.
func fieldsOf(t reflect.Type) ([]field, error) {
	if v, ok := known.Load(t); ok {
		if f, ok := v.([]field); ok {
			return f, nil
		}
	}
	var out []field
	for sf := range t.Fields() {
		tag := sf.Tag.Get("json")
		name, options, _ := strings.Cut(tag, ",")
		if tag == "-" || (!sf.IsExported() && !sf.Anonymous) {
			continue
		}
		if sf.Anonymous && name == "" && sf.Type.Kind() == reflect.Struct {
			inner, err := fieldsOf(sf.Type)
			if err != nil {
				return nil, err
			}
			for _, f := range inner {
				f.index = slices.Concat(sf.Index, f.index)
				out = append(out, f)
			}
			continue
		}
		if !sf.IsExported() || (sf.Anonymous && name == "") || slices.Contains(strings.Split(options, ","), "string") {
			return nil, fmt.Errorf("field %s of %s: this form is not known here", sf.Name, t)
		}
		if name == "" {
			name = sf.Name
		}
		o := strings.Split(options, ",")
		out = append(out, field{name, sf.Index, slices.Contains(o, "omitempty"), slices.Contains(o, "omitzero")})
	}
	names := map[string]bool{}
	for _, f := range out {
		if names[f.name] {
			return nil, fmt.Errorf("%s has two fields %q", t, f.name)
		}
		names[f.name] = true
	}
	known.Store(t, out)
	return out, nil
}

// left reports whether encoding/json leaves the field out.
func (f field) left(v reflect.Value) bool {
	if f.omitZero {
		if z, ok := reflect.TypeAssert[interface{ IsZero() bool }](v); ok && (v.Kind() != reflect.Pointer || !v.IsNil()) {
			return z.IsZero()
		}
		if v.IsZero() {
			return true
		}
	}
	if !f.omitEmpty {
		return false
	}
	switch v.Kind() {
	case reflect.Array, reflect.Map, reflect.Slice, reflect.String:
		return v.Len() == 0
	case reflect.Struct:
		return false
	}
	return v.IsZero()
}

// encode renders v as encoding/json does, with bytes beside what is not UTF-8.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	if err := put(&b, reflect.ValueOf(v)); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func put(b *bytes.Buffer, v reflect.Value) error {
	if !v.IsValid() {
		b.WriteString("null")
		return nil
	}
	if v.Type().Implements(marshaler) || v.Type().Implements(textMarshaler) {
		return plain(b, v)
	}
	if p := reflect.PointerTo(v.Type()); v.CanAddr() && (p.Implements(marshaler) || p.Implements(textMarshaler)) {
		return plain(b, v.Addr())
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return plain(b, v)
		}
		return put(b, v.Elem())
	case reflect.Struct:
		return putStruct(b, v)
	case reflect.Map:
		return putMap(b, v)
	case reflect.Slice, reflect.Array:
		return putList(b, v)
	}
	return plain(b, v)
}

// plain has encoding/json render what has no fields.
func plain(b *bytes.Buffer, v reflect.Value) error {
	out, err := json.Marshal(v.Interface())
	b.Write(out)
	return err //nolint:wrapcheck // Marshal does
}

func putStruct(b *bytes.Buffer, v reflect.Value) error {
	fields, err := fieldsOf(v.Type())
	if err != nil {
		return err
	}
	b.WriteByte('{')
	first := true
	for _, f := range fields {
		fv := v.FieldByIndex(f.index)
		if f.left(fv) {
			continue
		}
		if err := putName(b, f.name, &first); err != nil {
			return err
		}
		if err := put(b, fv); err != nil {
			return err
		}
		exact := exactOf(fv)
		if exact == nil || says(fields, f.name+suffix) {
			continue
		}
		if err := putName(b, f.name+suffix, &first); err != nil {
			return err
		}
		if err := plain(b, reflect.ValueOf(exact)); err != nil {
			return err
		}
	}
	b.WriteByte('}')
	return nil
}

// says reports whether a struct has a field of the name, and so says itself what stands
// there.
func says(fields []field, name string) bool {
	return slices.ContainsFunc(fields, func(f field) bool { return f.name == name })
}

func putName(b *bytes.Buffer, name string, first *bool) error {
	if !*first {
		b.WriteByte(',')
	}
	*first = false
	if err := plain(b, reflect.ValueOf(name)); err != nil {
		return err
	}
	b.WriteByte(':')
	return nil
}

// putMap renders a map. Its names are sorted by encoding/json, which gets the values
// as they are to be.
func putMap(b *bytes.Buffer, v reflect.Value) error {
	if v.IsNil() {
		return plain(b, v)
	}
	out := reflect.MakeMapWithSize(reflect.MapOf(v.Type().Key(), reflect.TypeFor[Raw]()), v.Len())
	for it := v.MapRange(); it.Next(); {
		var value bytes.Buffer
		if err := put(&value, it.Value()); err != nil {
			return err
		}
		out.SetMapIndex(it.Key(), reflect.ValueOf(Raw(value.Bytes())))
	}
	return plain(b, out)
}

func putList(b *bytes.Buffer, v reflect.Value) error {
	if v.Type().Elem().Kind() == reflect.Uint8 || (v.Kind() == reflect.Slice && v.IsNil()) {
		return plain(b, v)
	}
	b.WriteByte('[')
	for i := range v.Len() {
		if i > 0 {
			b.WriteByte(',')
		}
		if err := put(b, v.Index(i)); err != nil {
			return err
		}
	}
	b.WriteByte(']')
	return nil
}

// exactOf returns what stands beside a field: nil, []byte or [][]byte.
func exactOf(v reflect.Value) any {
	for (v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface) && !v.IsNil() {
		v = v.Elem()
	}
	switch {
	case isText(v.Type(), marshaler, textMarshaler):
		if b := Exact(v.String()); b != nil {
			return b
		}
	case isList(v.Type(), marshaler, textMarshaler):
		list, some := make([][]byte, v.Len()), false
		for i := range list {
			list[i] = Exact(v.Index(i).String())
			some = some || list[i] != nil
		}
		if some {
			return list
		}
	}
	return nil
}

// isText reports whether t is a string that has no form of its own in JSON.
func isText(t reflect.Type, own ...reflect.Type) bool {
	return t.Kind() == reflect.String && !slices.ContainsFunc(own, func(o reflect.Type) bool {
		return t.Implements(o) || reflect.PointerTo(t).Implements(o)
	})
}

func isList(t reflect.Type, own ...reflect.Type) bool {
	return t.Kind() == reflect.Slice && isText(t.Elem(), own...)
}

// restoreIn puts the bytes in data into v, which was decoded from it.
func restoreIn(data []byte, v reflect.Value) error {
	for v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return nil
		}
		if v.Type().Implements(unmarshaler) || v.Type().Implements(textUnmarshaler) {
			return nil
		}
		v = v.Elem()
	}
	switch {
	case !v.CanSet(), !hasBytes(data):
	case v.Kind() == reflect.Struct:
		return restoreStruct(data, v)
	case v.Kind() == reflect.Map:
		return restoreMap(data, v)
	case v.Kind() == reflect.Slice, v.Kind() == reflect.Array:
		var list []Raw
		if err := json.Unmarshal(data, &list); err != nil {
			return nil //nolint:nilerr // base64, or null
		}
		for i := range min(v.Len(), len(list)) {
			if err := restoreIn(list[i], v.Index(i).Addr()); err != nil {
				return err
			}
		}
	}
	return nil
}

func restoreStruct(data []byte, v reflect.Value) error {
	if v.Addr().Type().Implements(unmarshaler) || v.Addr().Type().Implements(textUnmarshaler) {
		return nil
	}
	fields, err := fieldsOf(v.Type())
	if err != nil {
		return err
	}
	var object map[string]Raw
	if err := json.Unmarshal(data, &object); err != nil {
		return err //nolint:wrapcheck // Unmarshal does
	}
	for _, f := range fields {
		fv := v.FieldByIndex(f.index)
		if exact, ok := object[f.name+suffix]; ok && !says(fields, f.name+suffix) {
			if err := take(exact, fv); err != nil {
				return fmt.Errorf("%s: %w", f.name+suffix, err)
			}
		}
		if in, ok := object[f.name]; ok {
			if err := restoreIn(in, fv.Addr()); err != nil {
				return err
			}
		}
	}
	return nil
}

func restoreMap(data []byte, v reflect.Value) error {
	if v.Type().Elem().Kind() == reflect.String {
		return nil
	}
	values := reflect.New(reflect.MapOf(v.Type().Key(), reflect.TypeFor[Raw]()))
	if err := json.Unmarshal(data, values.Interface()); err != nil {
		return err //nolint:wrapcheck // Unmarshal does
	}
	for it := values.Elem().MapRange(); it.Next(); {
		was := v.MapIndex(it.Key())
		if !was.IsValid() {
			continue
		}
		value := reflect.New(v.Type().Elem())
		value.Elem().Set(was)
		if err := restoreIn(it.Value().Bytes(), value); err != nil {
			return err
		}
		v.SetMapIndex(it.Key(), value.Elem())
	}
	return nil
}

// errMismatch refuses a list of bytes beside a list of another length.
var errMismatch = errors.New("as many as there are strings are wanted, in base64 or null")

// take sets a string or list of strings to the bytes in data. What else has such a name
// is no string's bytes.
func take(data []byte, v reflect.Value) error {
	if v.Kind() == reflect.Pointer {
		if !isText(v.Type().Elem(), unmarshaler, textUnmarshaler) {
			return nil
		}
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		v = v.Elem()
	}
	switch {
	case isText(v.Type(), unmarshaler, textUnmarshaler):
		var b *string
		if err := json.Unmarshal(data, &b); err != nil || b == nil {
			return err //nolint:wrapcheck // Unmarshal does
		}
		raw, err := base64.StdEncoding.DecodeString(*b)
		if err != nil {
			return err //nolint:wrapcheck // it is as short as can be
		}
		v.SetString(string(raw))
	case isList(v.Type(), unmarshaler, textUnmarshaler):
		var list [][]byte
		if err := json.Unmarshal(data, &list); err != nil {
			return err //nolint:wrapcheck // Unmarshal does
		}
		if list == nil {
			return nil
		}
		if len(list) != v.Len() {
			return errMismatch
		}
		for i, b := range list {
			if b != nil {
				v.Index(i).SetString(string(b))
			}
		}
	}
	return nil
}
