package control

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A state file is this version's, whole and of a sensible size, or an error.
func TestSandboxIsRefused(t *testing.T) {
	for _, test := range []struct{ name, text, says string }{
		{"as stored", `{"id":"a","confined":{"granted":[]}}`, ""},
		{"another version's", `{"id":"a","colour":"blue"}`, "unknown field"},
		{"cut short", `{"id":"a"`, "unexpected EOF"},
		{"two of them", `{"id":"a"}{"id":"b"}`, "something follows its end"},
		{"of another kind", `["a"]`, "cannot unmarshal"},
		{"huge", `{"id":"` + strings.Repeat("a", maxState) + `"}`, "more than"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, SandboxFile), []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := ReadSandbox(dir)
			if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %v, want %q", err, test.says)
			}
		})
	}
}

// What is understood of a Sandbox is written again as it was.
func FuzzSandbox(f *testing.F) {
	f.Add([]byte(`{"id":"web","root":"/run/runc","created":"2026-01-01T00:00:00Z","status":"started","init_pid":7,"init_start":8,"policy":"egress: {rules: []}","confined":{"x":[1, 2]}}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := new(Sandbox)
		if decodeState(b, s) != nil {
			return
		}
		once, err := json.Marshal(s)
		if err != nil {
			return // a time beyond the year 9999
		}
		again := new(Sandbox)
		if err := decodeState(once, again); err != nil {
			t.Fatalf("what was understood is not, written again: %v\n%s", err, once)
		}
		if twice, err := json.Marshal(again); err != nil || !bytes.Equal(once, twice) {
			t.Errorf("%s became %s (%v)", once, twice, err)
		}
	})
}
