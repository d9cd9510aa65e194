package runtime

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"nemoclaw/specs/landlock"
)

// stored is what create would store.
func stored(t testing.TB) []byte {
	t.Helper()
	b, err := json.Marshal(&confined{ABI: 7, Granted: []landlock.Granted{{Path: "/usr", Access: landlock.ReadOnly, Why: "built-in", Dev: 1, Ino: 2}},
		Writable: []string{"/tmp"}, First: make([]byte, 8), Filter: make([]byte, 16), Notes: []string{"process: no_new_privs is set"}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What cannot have been stored by this version is refused, and exec with it.
func TestStoredIsRefused(t *testing.T) {
	for _, test := range []struct{ name, from, to, says string }{
		{"nothing", "", "", ""},
		{"another version's", `"notes"`, `"more":1,"notes"`, "unknown field"},
		{"no Landlock", `"landlock_abi":7`, `"landlock_abi":0`, "there is no ABI 0"},
		{"a relative path", `"/usr"`, `"usr"`, "no absolute path"},
		{"a path with dots", `"/usr"`, `"/usr/../root"`, "no absolute path"},
		{"a right that the kernel does not know", `"access":13`, `"access":65549`, "ABI 7 cannot grant"},
		{"no right", `"access":13`, `"access":0`, "ABI 7 cannot grant"},
		{"half an instruction of the first filter", `AAAAAAAAAAA=`, `AAAA`, "its length is wrong"},
		{"half an instruction", `AAAAAAAAAAAAAAAAAAAAAA==`, `AAAA`, "its length is wrong"},
		{"no filter", `AAAAAAAAAAAAAAAAAAAAAA==`, ``, "its length is wrong"},
		{"a filter that is too long", `AAAAAAAAAAAAAAAAAAAAAA==`, strings.Repeat("AAAA", 16<<10), "its length is wrong"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := bytes.Replace(stored(t), []byte(test.from), []byte(test.to), 1)
			if test.from != "" && bytes.Equal(b, stored(t)) {
				t.Fatalf("%s is not in %s", test.from, b)
			}
			_, err := decodeConfined(b)
			if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %v, want %q", err, test.says)
			}
		})
	}
}

// Whatever lies in the state directory: what is understood is stored again as
// it was, and grants nothing that the ABI does not know.
func FuzzStored(f *testing.F) {
	f.Add(stored(f))
	f.Add([]byte(`{"landlock_abi":9,"granted":null,"filter":"AAAAAAAAAAA="}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeConfined(b)
		if err != nil {
			return
		}
		for _, g := range c.Granted {
			if g.Access&^landlock.Handled(c.ABI) != 0 || !strings.HasPrefix(g.Path, "/") {
				t.Errorf("%+v was taken", g)
			}
		}
		filters, err := c.filters()
		if err != nil || !bytes.Equal(encodeFilter(filters.first), c.First) || !bytes.Equal(encodeFilter(filters.second), c.Filter) {
			t.Errorf("the filters changed: %v", err)
		}
		again, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		d, err := decodeConfined(again)
		if err != nil {
			t.Fatalf("what was understood is not, stored again: %v", err)
		}
		if twice, _ := json.Marshal(d); !bytes.Equal(again, twice) {
			t.Errorf("%s became %s", again, twice)
		}
	})
}

// A filter is read as it was written.
func FuzzFilter(f *testing.F) {
	f.Add(make([]byte, 8))
	f.Add([]byte("sixteen bytes of"))
	f.Fuzz(func(t *testing.T, b []byte) {
		filter, err := decodeFilter(b)
		if err == nil && (!bytes.Equal(encodeFilter(filter), b) || len(filter) == 0 || len(filter) > maxFilter) {
			t.Errorf("%d bytes became %d instructions", len(b), len(filter))
		}
	})
}
