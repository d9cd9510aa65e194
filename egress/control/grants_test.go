package control

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// What was decided is read as it was written, and nothing else is: a grant that
// is understood by halves could allow more than was decided.
func TestDecisionsAreReadWhole(t *testing.T) {
	dir := t.TempDir()
	if d, err := ReadDecisions(dir); err != nil || len(d.Grants) != 0 {
		t.Errorf("before the first: %+v, %v", d, err)
	}
	want := &Decisions{Last: 3, Began: map[string]Uptime{"a:443 ttl: 1h": 7}, Grants: []Grant{
		{ID: 2, Host: "a.example.org", Port: 443, Allow: true, By: "uid 0 pid 1", Counted: true, Uses: 2, Request: "r1", Until: Now() + 1},
		{ID: 3, Host: "192.0.2.1", Port: 22},
	}}
	if err := WriteDecisions(dir, want); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadDecisions(dir); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, %v", got, err)
	}
	for _, c := range []struct{ src, told string }{
		{"", "EOF"},
		{"[]", "cannot unmarshal"},
		{`{"last":1,"grants":[{"id":1,"host":"a","port":1,"forever":true}]}`, "unknown field"},
		{`{"last":1,"grants":[{"id":2,"host":"a","port":1}]}`, "numbered 2 of 1"},
		{`{"last":1,"grants":[{"id":0,"host":"a","port":1}]}`, "numbered 0"},
		{`{"last":2,"grants":[{"id":1,"host":"a","port":1},{"id":1,"host":"b","port":1}]}`, "numbered 1"},
		{`{"last":1,"grants":[{"id":1,"port":1}]}`, "no host"},
		{`{"last":1,"grants":[{"id":1,"host":"a","port":1,"uses":3}]}`, "bounds"},
		{`{"last":1,"grants":[{"id":1,"host":"a","port":1,"counted":true,"uses":-3}]}`, "bounds"},
		{`{"last":0,"grants":[]} {}`, "something follows"},
		{`{"last":1,"grants":[` + strings.Repeat(" ", maxFile), "larger"},
	} {
		if err := os.WriteFile(filepath.Join(dir, GrantsFile), []byte(c.src), 0o600); err != nil {
			t.Fatal(err)
		}
		if d, err := ReadDecisions(dir); err == nil || !strings.Contains(err.Error(), c.told) {
			t.Errorf("%.60s is read as %+v, %v", c.src, d, err)
		}
	}
}

// FuzzDecisions: what is read at all means the same when it is written again,
// has numbers of its own, and no grant is without a host and a port.
func FuzzDecisions(f *testing.F) {
	f.Add([]byte(`{"last":2,"grants":[{"id":2,"host":"a","port":1,"allow":true,"counted":true,"uses":1,"request":"r"}],"began":{"x":1}}`))
	f.Add([]byte(`{"last":1,"grants":[{"id":1,"host":"a","port":1,"allow":true,"by":"","since":"2026-11-22T12:00:00Z","until":5}]}`))
	f.Fuzz(func(t *testing.T, src []byte) {
		d, err := parseDecisions(src)
		if err != nil {
			return
		}
		for _, g := range d.Grants {
			if g.ID == 0 || g.Host == "" || g.Port == 0 || g.Uses < 0 || g.Spent() && g.Uses > 0 {
				t.Errorf("read %+v", g)
			}
		}
		again, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		back, err := parseDecisions(again)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		twice, err := json.Marshal(back)
		if err != nil || string(twice) != string(again) {
			t.Errorf("written again it is %s, %v; it was %s", twice, err, again)
		}
	})
}

// Whoever sets the machine's clock neither ends an approval nor prolongs it: what
// is counted is the time since boot, which nobody can set (proc_uptime(5)).
func TestUptimeIsNoWallClock(t *testing.T) {
	booted := func() Uptime {
		text, err := os.ReadFile("/proc/uptime")
		if err != nil {
			t.Fatal(err)
		}
		since, _, _ := strings.Cut(string(text), " ")
		d, err := time.ParseDuration(since + "s")
		if err != nil {
			t.Fatal(err)
		}
		return Uptime(d)
	}
	const tick = Uptime(10 * time.Millisecond) // what /proc/uptime is rounded to
	before := booted()
	now := Now()
	if after := booted(); now < before-tick || now > after+tick {
		t.Errorf("now is %v, between %v and %v since boot", now, before, after)
	}
}
