package monitor

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
)

// The owner of a connection is the process that was seen to connect, whoever
// holds the socket later, and also when it has ended. Where nobody saw it, who
// holds the socket is said, and whether it could be another.
func TestOwner(t *testing.T) {
	needFirstPIDs(t)
	s := newSandbox(t)
	group := newTestCgroup(t)
	seen, unseen := newTestOwners(t, s), newTestOwners(t, s)
	s.must(seen.load())
	s.must(seen.watch(cgroups, group.start(t, s, "init").Process.Pid))
	to := listenPort(t, s)
	self, err := os.Executable()
	s.must(err)
	for _, c := range []struct {
		name    string
		owners  *owners
		program string
		ended   bool
		find    string // what is unsure of it for the log
		ask     string // and for a decision; "-": it is unknown
	}{
		{"seen", seen, "connect", false, "", ""},
		{"seen, and held by another too", seen, "share", false, "", ""},
		{"seen, and ended", seen, "connect", true, "it has ended", "it has ended"},
		{"not seen", unseen, "connect", false, "it holds the socket; others may too", ""},
		{"not seen, and held by another too", unseen, "share", false, "it holds the socket; others may too", "several processes hold the socket"},
		{"not seen, and ended", unseen, "connect", true, "-", "-"},
	} {
		t.Run(c.name, func(t *testing.T) {
			program := group.start(t, s, c.program, "127.0.0.1:"+to)
			src, dst := netip.MustParseAddrPort(program.said), netip.MustParseAddrPort("127.0.0.1:"+to)
			if c.ended {
				program.end()
			}
			patient := time.Now().Add(patience)
			for i, p := range []*control.Process{c.owners.find(src, dst, patient), c.owners.lookup(src, dst, true, patient)} {
				switch what := []string{c.find, c.ask}[i]; {
				case what == "-":
					if p != nil {
						t.Errorf("it belongs to %+v", p)
					}
				case p == nil:
					t.Errorf("it belongs to nobody, want %q", what)
				case p.Unsure != what:
					t.Errorf("it belongs to %+v, want it to be %q", p, what)
				case what == "" && (p.PID != program.Process.Pid || p.Exe != self || !slices.Equal(p.Args, []string{"an agent", c.program, "127.0.0.1:" + to})):
					t.Errorf("it belongs to %+v", p)
				case p.PID == program.Process.Pid && len(p.Ancestors) != 0:
					t.Errorf("this test is no ancestor inside the sandbox: %v", p.Ancestors)
				}
			}
		})
	}
	if p := seen.ask(netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:"+to)); p != nil {
		t.Errorf("a connection that does not exist belongs to %+v", p)
	}
}

// A process that executes another program is that program from then on.
func TestOwnerIsReadAnew(t *testing.T) {
	s := newSandbox(t)
	o := newTestOwners(t, s)
	o.known[4711] = known{name: "sh", at: time.Now(), process: &control.Process{PID: 4711, Name: "sh"}}
	as := func(name string) caller {
		c := caller{Process: 4711, At: 1}
		copy(c.Name[:], name)
		return c
	}
	if p := o.called(as("sh"), false); p.Unsure != "" {
		t.Errorf("a process that was read a moment ago was read again: %+v", p)
	}
	for _, p := range []*control.Process{o.called(as("curl"), false), o.called(as("sh"), true)} {
		if p.Unsure != "it has ended" && p.Exe == "" {
			t.Errorf("it is taken as known: %+v", p)
		}
	}
}

// A record has the process whose connection it is, from the first line to the
// last, and the monitor found out by itself.
func TestRecordsHaveOwners(t *testing.T) {
	needFirstPIDs(t)
	s := newSandbox(t)
	group := newTestCgroup(t)
	m := &Monitor{owners: newTestOwners(t, s), tally: newTally()}
	s.must(m.owners.load())
	s.must(m.owners.watch(cgroups, group.start(t, s, "init").Process.Pid))
	to := listenPort(t, s)
	program := group.start(t, s, "connect", "127.0.0.1:"+to)
	r := control.Record{Request: "r-1", Src: netip.MustParseAddrPort(program.said), Dst: netip.MustParseAddrPort("127.0.0.1:" + to)}
	for _, c := range []struct {
		verdict control.Verdict
		request string
		known   bool
	}{
		{control.Allow, "r-1", true},
		{control.End, "r-1", true},    // by its number: the connection is gone
		{control.End, "r-1", false},   // that has ended
		{control.Refuse, "r-2", true}, // seen, although its process has ended
		{control.Cut, "r-3", false},   // never begun
	} {
		r.Verdict, r.Request, r.Process = c.verdict, c.request, nil
		list := []control.Record{r}
		m.attribute(list)
		m.count(list, true)
		if p := list[0].Process; (p != nil) != c.known || p != nil && p.PID != program.Process.Pid {
			t.Errorf("%s of %s belongs to %+v", c.verdict, c.request, p)
		}
		program.end()
	}
}

const cgroups = "/sys/fs/cgroup"

func newTestOwners(t *testing.T, s *sandbox) *owners {
	t.Helper()
	o, err := newOwners(s.inner)
	s.must(err)
	t.Cleanup(o.close)
	return o
}

// testCgroup is a container's, of version 2.
type testCgroup struct {
	dir string
	fd  *os.File
}

func newTestCgroup(t *testing.T) testCgroup {
	t.Helper()
	mounts := slices.DeleteFunc(hierarchies(cgroups), func(dir string) bool { return !isCgroup2(dir) })
	if len(mounts) == 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("cgroups of version 2 are needed")
		}
		t.Skip("cgroups of version 2 are needed")
	}
	dir := filepath.Join(mounts[0], fmt.Sprintf("nemoclaw-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fd, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		fd.Close()
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return testCgroup{dir, fd}
}

// testProgram is a process of the sandbox.
type testProgram struct {
	*exec.Cmd
	said string
	end  func()
}

// start starts this binary in the cgroup and in the sandbox's namespace.
func (g testCgroup) start(t *testing.T, s *sandbox, args ...string) testProgram {
	t.Helper()
	p := testProgram{Cmd: exec.Command("/proc/self/exe", args...)}
	p.Args[0] = "an agent"
	p.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(g.fd.Fd())}
	stdin, err := p.StdinPipe()
	s.must(err)
	stdout, err := p.StdoutPipe()
	s.must(err)
	s.must(startIn(s.inner, p.Cmd))
	p.end = func() {
		stdin.Close()
		io.Copy(io.Discard, stdout)
		p.Wait()
	}
	t.Cleanup(p.end)
	if len(args) > 1 {
		_, err = fmt.Fscanln(stdout, &p.said)
		s.must(err)
	}
	return p
}

// listenPort is the port of the first of the sandbox's listeners.
func listenPort(t *testing.T, s *sandbox) string {
	t.Helper()
	files, err := listenIn(s.inner)
	s.must(err)
	t.Cleanup(func() { control.CloseAll(files) })
	sa, err := unix.Getsockname(int(files[0].Fd()))
	s.must(err)
	return strconv.Itoa(sa.(*unix.SockaddrInet4).Port)
}

// needFirstPIDs skips a test in a pid namespace that is not the machine's first,
// also in CI: connections are not watched there, and nothing that could be
// installed changes it.
func needFirstPIDs(t *testing.T) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &st); err != nil || st.Ino != firstPIDs {
		t.Skip("connections are watched in the machine's first pid namespace only, and this is another")
	}
}
