package monitor

import (
	"strings"
	"testing"
	"time"

	"nemoclaw/egress/audit"
	"nemoclaw/egress/control"
)

// What the reader tells, and the line that is written: its OCSF class and
// activity, and what was refused.
func TestDenialLines(t *testing.T) {
	tests := []struct {
		name     string
		denial   control.Denial
		class    int
		activity int
		path     string
		kernel   string
	}{
		{"a file that is read", control.Denial{Layer: "landlock", Rights: []string{"fs.read_file"}, Path: "/root/x"}, 1001, audit.ActivityRead, "/root/x", ""},
		{"a directory", control.Denial{Layer: "landlock", Rights: []string{"fs.read_dir"}, Path: "/"}, 1001, audit.ActivityRead, "/", ""},
		{"a file that is written", control.Denial{Layer: "landlock", Rights: []string{"fs.write_file", "fs.truncate"}, Path: "/x"}, 1001, audit.ActivityUpdate, "/x", ""},
		{"a file that is made elsewhere", control.Denial{Layer: "landlock", Rights: []string{"fs.make_reg", "fs.refer"}, Path: "/x"}, 1001, audit.ActivityCreate, "/x", ""},
		{"a file that is removed", control.Denial{Layer: "landlock", Rights: []string{"fs.remove_file"}, Path: "/x"}, 1001, audit.ActivityDelete, "/x", ""},
		{"a program", control.Denial{Layer: "landlock", Rights: []string{"fs.execute"}, Path: "/x"}, 1001, audit.ActivityOther, "/x", ""},
		{"a signal", control.Denial{Layer: "landlock", Rights: []string{"scope.signal"}}, 1003, audit.ActivityOther, "", "scope.signal"},
		{"a system call", control.Denial{Layer: "seccomp", Call: "ptrace"}, 1003, audit.ActivityInvoke, "", "ptrace"},
		{"a reader that was taken over", control.Denial{Layer: "x", Path: strings.Repeat("/", 1<<20), Call: strings.Repeat("c", 1<<20), Rights: make([]string, 1<<16)}, 1003, audit.ActivityInvoke, "", strings.Repeat("c", maxHost)},
	}
	m := new(Monitor)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.denial.Time = time.UnixMilli(1795338611341)
			e := m.denial("web", &test.denial).(*audit.Denied)
			path, kernel := "", ""
			if e.File != nil {
				path = e.File.Path
			}
			if e.Kernel != nil {
				kernel = e.Kernel.Name
			}
			if e.ClassUID != test.class || e.ActivityID != test.activity || path != test.path || kernel != test.kernel {
				t.Errorf("class %d, activity %d, path %q, kernel %q", e.ClassUID, e.ActivityID, path, kernel)
			}
			if e.ActionID != 2 || e.DispositionID != audit.Blocked || e.StatusID != 2 || e.Device.UID != "web" || e.Time != 1795338611341 || len(e.Unmapped.Rights) > maxRights {
				t.Errorf("%+v", e)
			}
		})
	}
}

// Domains are kept for the next reader as long as they live, and for the next
// monitor.
func TestDomainsAreKept(t *testing.T) {
	m := &Monitor{Dir: t.TempDir()}
	o := &observer{watch: control.Watch{Launcher: "web"}, store: m.storeDomains}
	o.keep([]control.Domain{{ID: "a", PID: 1}, {ID: "b", PID: 2}}, nil)
	o.keep([]control.Domain{{ID: "c", PID: 3}}, []string{"a", "c"})
	stored, err := control.ReadDomains(m.Dir)
	if err != nil || len(stored["web"]) != 1 || stored["web"][0] != (control.Domain{ID: "b", PID: 2}) {
		t.Errorf("stored are %v (%v)", stored, err)
	}
	for range 2 * maxDomains / 64 {
		o.keep(make([]control.Domain, 64), nil)
	}
	if len(o.watch.Domains) != maxDomains {
		t.Errorf("%d domains are kept, want %d", len(o.watch.Domains), maxDomains)
	}
}
