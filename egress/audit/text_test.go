package audit

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
)

// What is written down by hand is what encoding/json would write, escaped. A
// field that was added to Network and not to its text is found here too.
func TestTextIsJSON(t *testing.T) {
	full := new(Network)
	fillAll(reflect.ValueOf(full).Elem())
	bare := *full
	bare.Src, bare.Dst = new(Endpoint), &Endpoint{Port: 1}
	bare.Actor = &Actor{}
	for _, n := range []*Network{full, &bare, {}, NewNetwork("web", ActivityOpen)} {
		compareText(t, n)
	}
}

// fillAll sets every field there is to something.
func fillAll(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fillAll(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			fillAll(v.Field(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fillAll(v.Index(i))
		}
	case reflect.String:
		v.SetString("text")
	case reflect.Int, reflect.Int64:
		v.SetInt(-7)
	case reflect.Uint16, reflect.Uint64:
		v.SetUint(7)
	}
}

func FuzzText(f *testing.F) {
	f.Add("api.example.org", "curl", "a\x1b\u202e<b>\"\\\xff", int64(0), uint16(443))
	f.Add("", "", "\u2028", int64(-1), uint16(0))
	f.Fuzz(func(t *testing.T, host, name, detail string, n int64, port uint16) {
		e := NewNetwork(name, int(n))
		e.Src = &Endpoint{Hostname: host, Port: port}
		e.Dst = &Endpoint{IP: detail}
		e.Actor = &Actor{Process: Process{Name: name, File: NewFile(detail), Ancestry: []Ancestor{{host}, {detail}}}}
		e.Duration, e.Count = n, int(port)
		e.Traffic = &Traffic{In: n}
		e.Unmapped.Detail, e.Unmapped.Method, e.Unmapped.Unsure = detail, name, host
		compareText(t, e)
	})
}

func compareText(t *testing.T, n *Network) {
	t.Helper()
	want, err := json.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	want = ascii(nil, want)
	got, err := text([]byte("before "), n)
	if err != nil || !bytes.Equal(got, append([]byte("before "), want...)) {
		t.Errorf("written as\n%s\nwant\n%s", got, want)
	}
}

func BenchmarkText(b *testing.B) {
	n := new(Network)
	fillAll(reflect.ValueOf(n).Elem())
	var line []byte
	for b.Loop() {
		line, _ = text(line[:0], n)
	}
}
