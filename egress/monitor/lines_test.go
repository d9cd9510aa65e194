package monitor

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nemoclaw/egress/audit"
	"nemoclaw/egress/control"
)

// Whatever a worker or the reader of denials says, and however little, what is
// written conforms to the tables of the audit log.
func TestLinesConform(t *testing.T) {
	file := filepath.Join(t.TempDir(), "web.jsonl")
	log, err := audit.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	m := new(Monitor)
	var lines []audit.Entry
	program := &control.Process{PID: 12, Name: "curl", Exe: "/usr/bin/curl", Container: "web", Ancestors: []string{"/bin/sh"}}
	end := netip.MustParseAddrPort("192.0.2.1:443")
	for verdict := range outcomes {
		for _, r := range []control.Record{
			{}, {Proto: "dns", Port: 53, Src: end}, {Proto: "ip", Count: 7}, {Proto: "tls", Host: "example.org", Port: 443, Dst: end, Process: program},
			{Proto: "http", Host: "192.0.2.1", Port: 80, Addr: end, Rule: "grant", Sent: 1, Got: 2, Lasted: time.Second, Request: "1"},
			{Proto: "udp", Host: "example.org", Port: 443, Src: end, Process: &control.Process{PID: 12}},
			{Proto: strings.Repeat("x", 1000), Host: "\x00", Would: "not-listed"},
		} {
			r.Verdict = verdict
			lines = append(lines, network("web", &r))
		}
	}
	lines = append(lines, network("web", &control.Record{Verdict: "nonsense"}), folded("web", control.LayerSeccomp, 3), missed("web", 3))
	for _, d := range []control.Denial{
		{}, {Layer: control.LayerLandlock, Rights: []string{"fs.read_file"}, Path: "/root/secret", PID: 12, Exe: "/bin/cat"},
		{Layer: control.LayerLandlock, Rights: []string{"scope.signal"}}, {Layer: control.LayerSeccomp, Call: "mount", PID: 12, Name: "mount"},
	} {
		if d.Time = time.Now(); d.Layer == control.LayerLandlock {
			d.OrChild = true
		}
		lines = append(lines, m.denial("web", &d))
	}
	if err := log.Append(lines...); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		for _, fault := range audit.Conforms([]byte(line)) {
			t.Errorf("%s in the line %s", fault, line)
		}
	}
}
