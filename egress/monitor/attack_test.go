package monitor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
)

// What an allowed connection becomes, its end included, is counted once: a
// program cannot make connections seem open that are not, and the sandbox's end
// wait for them.
func TestOpenConnections(t *testing.T) {
	s, w := up(t)
	say := func(v control.Verdict, request string) {
		w.record(control.Record{Verdict: v, Host: "api.example.org", Port: 443, Request: request})
	}
	for _, step := range []struct {
		verdict control.Verdict
		request string
		open    int
	}{
		{control.Allow, "1", 1},
		{control.Refuse, "1", 0}, // allowed by its name and refused by its address
		{control.Refuse, "2", 0},
		{control.Allow, "3", 1},
		{control.Allow, "4", 2},
		{control.End, "3", 1},
		{control.End, "3", 1},
		{control.Cut, "4", 0},
		{control.Allow, "5", 1},
		{control.Fail, "5", 0},
	} {
		say(step.verdict, step.request)
		if got := s.status().Open; got != step.open {
			t.Errorf("after %s of %s: %d open, want %d", step.verdict, step.request, got, step.open)
		}
	}
}

// What a worker says is kept in bounds, whatever it says.
func TestWorkersWordsAreBounded(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	var p pendings
	p.add(&control.Record{Host: "api.example.org", Port: 1, Reason: "not-listed", Request: long, Process: &control.Process{
		Name: long, Exe: long, Ancestors: strings.Split(strings.Repeat(long+" ", 20), " "),
	}}, "not-listed", time.Now())
	if n := len(fmt.Sprint(p.list[0], *p.list[0].Process)); n > 8<<10 {
		t.Errorf("a pending decision takes %d bytes", n)
	}
	var w worker
	for i := range 2 * maxOpen {
		w.opened(fmt.Sprint(i), nil)
	}
	if len(w.open) != maxOpen {
		t.Errorf("%d connections are kept in mind", len(w.open))
	}
}

// Another file that is renamed while ours is half written does not have it read
// by halves, without the deny rules that stand at its end.
func TestEventsOfOtherFiles(t *testing.T) {
	event := func(mask uint32, name string) []byte {
		b := make([]byte, unix.SizeofInotifyEvent, 64)
		binary.NativeEndian.PutUint32(b[4:], mask)
		if name != "" {
			binary.NativeEndian.PutUint32(b[12:], 32)
			b = append(b, append([]byte(name), make([]byte, 32-len(name))...)...)
		}
		return b
	}
	for _, tc := range []struct {
		what   string
		events [][]byte
		whole  bool
		other  bool
	}{
		{"the file renamed into place", [][]byte{event(unix.IN_MOVED_TO, "policy.yaml")}, true, false},
		{"the file closed", [][]byte{event(unix.IN_CLOSE_WRITE, "policy.yaml")}, true, false},
		{"half of the file written", [][]byte{event(unix.IN_MODIFY, "policy.yaml")}, false, true},
		{"half of what it is a link to written", [][]byte{event(unix.IN_MODIFY, "strict.yaml")}, false, true},
		{"what it is a link to closed", [][]byte{event(unix.IN_CLOSE_WRITE, "strict.yaml")}, true, false},
		{"another renamed meanwhile", [][]byte{event(unix.IN_MODIFY, "policy.yaml"), event(unix.IN_MOVED_TO, "policy.yaml.bak")}, false, true},
		{"a ConfigMap's link", [][]byte{event(unix.IN_MOVED_TO, "..data")}, false, true},
		{"the directory gone", [][]byte{event(unix.IN_MOVE_SELF, "")}, false, true},
		{"too many to tell", [][]byte{event(unix.IN_Q_OVERFLOW, "")}, false, true},
		{"both", [][]byte{event(unix.IN_MOVED_TO, "other"), event(unix.IN_CLOSE_WRITE, "policy.yaml")}, true, true},
	} {
		at, beside := events(slices.Concat(tc.events...), [2]string{"policy.yaml", "strict.yaml"})
		if whole, other := at&wholeEvents != 0, at&(otherEvents|goneEvents)|beside != 0; whole != tc.whole || other != tc.other {
			t.Errorf("%s: whole %v, other %v", tc.what, whole, other)
		}
	}
	// A link may lead to a file of another name.
	file := filepath.Join(t.TempDir(), "policy.yaml")
	real := filepath.Join(filepath.Dir(file), "strict.yaml")
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err := errors.Join(err, os.WriteFile(real, nil, 0o600), os.Symlink(real, file)); err != nil {
		t.Fatal(err)
	}
	w := &watcher{file: file, inotify: os.NewFile(uintptr(fd), "inotify")}
	defer w.inotify.Close()
	if w.aim(); *w.names.Load() != [2]string{"policy.yaml", "strict.yaml"} {
		t.Errorf("of a link these names are watched: %q", *w.names.Load())
	}
	// What the kernel never writes is no reason to fall over.
	events([]byte(strings.Repeat("\xff", 100)), [2]string{})
}

// What waits for a decision has a name that a decision could be about: shells,
// policies and terminals are offered it as it is.
func TestPendingHasNames(t *testing.T) {
	for host, kept := range map[string]bool{
		"api.example.org": true, "192.0.2.7": true, "2001:db8::7": true,
		"$(reboot)": false, "`reboot`": false, "a;reboot": false, "x y": false, "API.example.org": false,
		"a\n    - host: evil.example": false, "\x1b[2J": false, "*.example.org": false, "": false,
	} {
		var p pendings
		p.hold(&control.Record{Host: host, Port: 443, Reason: "not-listed", Request: "r"}, time.Now(), time.Minute)
		if got := len(p.list) == 1; got != kept {
			t.Errorf("%q is pending: %v, want %v", host, got, kept)
		}
	}
}

// Of many refusals at once most are one line with a count. Those that waited do
// not wait for ever in the eyes of the operator, nor keep others out of sight.
func TestWaitingEnds(t *testing.T) {
	var p pendings
	now := time.Now()
	for round := range 2 * maxOpen / 64 {
		for i := range 64 {
			p.hold(&control.Record{Host: "www.example.org", Port: 443, Reason: "not-listed", Request: fmt.Sprint(round, "-", i)}, now, time.Second)
		}
		if n := p.list[0].Waiting; n != 64 {
			t.Fatalf("in round %d %d connections wait", round, n)
		}
		now = now.Add(time.Second + 2*lateness)
	}
	p.lapse(now)
	if e := p.list[0]; e.Waiting != 0 || e.Until != nil || len(p.held) != 0 {
		t.Errorf("at the end %d wait until %v, and %d are remembered", e.Waiting, e.Until, len(p.held))
	}
}

// A worker's counts have names that are known beforehand, however many it makes
// up and however often it is started.
func TestCountsHaveNames(t *testing.T) {
	m := &Monitor{tally: newTally()}
	for i := range 1000 {
		m.heard(&control.Counted{DNS: map[string]uint64{"NOERROR": 1, fmt.Sprint("\x1b[2J", i): 1, strings.Repeat("x", 1<<16): 1}})
		m.tally.ended()
	}
	if d := m.tally.dns; len(d) != 2 || d["NOERROR"] != 1000 || d["other"] != 2000 {
		t.Errorf("%d kinds of answers, %d NOERROR, %d others", len(d), d["NOERROR"], d["other"])
	}
}

// For a decision a process is what it is now. That it looks as it did a moment
// ago, by its name, its parent and where its arguments lie, is no proof: all of
// these are a program's to choose.
func TestOwnerIsNotTakenForGranted(t *testing.T) {
	pid := os.Getpid()
	st, err := readStat(pid)
	if err != nil {
		t.Fatal(err)
	}
	o := &owners{known: map[int]known{pid: {stat: st, name: "git", at: time.Now(), process: &control.Process{PID: pid, Exe: "/usr/bin/git"}}}}
	c := caller{Process: uint32(pid), At: math.MaxInt64}
	copy(c.Name[:], "git")
	if p := o.called(c, true); p.Exe == "/usr/bin/git" || p.Exe != exe(pid) {
		t.Errorf("it counts as %s", p.Exe)
	}
}

// A monitor that takes the place of one that was lost begins with what that had
// in force, and not with what create read: what has been revoked stays so where
// the file has a fault, or is gone, by then.
func TestNothingRevokedComesBack(t *testing.T) {
	s, w := up(t)
	const fewer = "egress:\n  rules: []\n"
	s.save(fewer)
	if r := w.apply(); string(r.Policy) != fewer {
		t.Fatalf("the worker was given %s", r.Policy)
	}
	s.awaitLine("policy generation 2: +0 -1 rules")
	s.save("egress:\n  rulez: []\n")
	s.awaitLine(`"kind":"fault"`)
	s.stop()
	s.waitEnd()

	attach, err := control.ReadAttach(s.dir)
	s.must(err)
	s.begin()
	if a := s.ask(control.ToMonitor{Attach: attach}, s.inner, s.uplink); a.Fault != "" {
		t.Fatal(a.Fault)
	}
	s.knock("tcp", queues[0].addr)
	if r := s.worker().apply(); string(r.Policy) != fewer {
		t.Errorf("the next worker was given %s", r.Policy)
	}
	if string(attach.Policy) != onlyExample {
		t.Errorf("what create read has become %s", attach.Policy)
	}
}

// Where connections are seen being made, one that was not is no allowed
// program's: it may only hold what another has connected, and crowded out.
func TestHoldingIsNotConnecting(t *testing.T) {
	needFirstPIDs(t)
	s := newSandbox(t)
	group := newTestCgroup(t)
	o := newTestOwners(t, s)
	s.must(o.load())
	s.must(o.watch(cgroups, group.start(t, s, "init").Process.Pid))
	to := listenPort(t, s)
	program := group.start(t, s, "connect", "127.0.0.1:"+to)
	src, dst := netip.MustParseAddrPort(program.said), netip.MustParseAddrPort("127.0.0.1:"+to)
	if p, _ := o.ask(src, dst); p == nil || p.PID != program.Process.Pid || p.Unsure != "" {
		t.Errorf("seen, it belongs to %+v", p)
	}
	var cookie uint64
	var c caller
	for all := o.hook.seen.Iterate(); all.Next(&cookie, &c); {
		s.must(o.hook.seen.Delete(&cookie))
	}
	if p, _ := o.ask(src, dst); p != nil && p.Unsure == "" { // a search may also find nobody in its time
		t.Errorf("crowded out, it belongs to %+v", p)
	}
	// Of a container that cannot be watched, who holds a socket is all there is.
	if o.watch(cgroups, 1<<30) == nil || o.seesAll {
		t.Error("a container that is not there is watched")
	}
	if p, _ := o.ask(src, dst); p != nil && p.Unsure == "it was not seen to connect" {
		t.Errorf("searched for, it belongs to %+v", p)
	}
}

// "headless ADDRESS" is a program of the sandbox whose first thread ends before
// another connects.
func init() {
	if len(os.Args) != 3 || os.Args[1] != "headless" {
		return
	}
	go func() {
		for _, err := os.Stat("/proc/self/exe"); err == nil; _, err = os.Stat("/proc/self/exe") {
			goruntime.Gosched()
		}
		connect(os.Args[2], false)
		os.Exit(0)
	}()
	goruntime.LockOSThread() // an init runs on the first thread
	unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
}

// A program whose first thread has ended is known by its executable, and as
// its container's, all the same.
func TestOwnerWithoutAFirstThread(t *testing.T) {
	s := newSandbox(t)
	group := newTestCgroup(t)
	to := listenPort(t, s)
	dst := netip.MustParseAddrPort("127.0.0.1:" + to)
	for _, how := range []string{"seen", "searched for"} {
		t.Run(how, func(t *testing.T) {
			o := newTestOwners(t, s)
			m := &members{list: []*member{{Box: control.Box{ID: "web"}, mounts: ownMounts(t)}}}
			o.whose = m.whose
			if how == "seen" {
				needFirstPIDs(t)
				s.must(o.load())
				s.must(o.watch(cgroups, group.start(t, s, "init").Process.Pid))
			}
			program := group.start(t, s, "headless", "127.0.0.1:"+to)
			p, _ := o.ask(netip.MustParseAddrPort(program.said), dst)
			if how == "searched for" && p == nil {
				return // its descriptors cannot be listed: nobody's is no allowed program's
			}
			if p == nil || p.PID != program.Process.Pid || p.Exe != exe(os.Getpid()) || p.Container != "web" {
				t.Errorf("it belongs to %+v", p)
			}
		})
	}
}

func ownMounts(t *testing.T) string {
	t.Helper()
	mounts, err := linkOf(os.Getpid(), "ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	return mounts
}

// Datagrams are told apart by their ports, which a program may give to others or
// have thousands of sockets with. The log blames nobody for certain then, and the
// monitor, whom every decision waits for, looks at no more than a few.
func TestPortsOfDatagrams(t *testing.T) {
	needFirstPIDs(t)
	s := newSandbox(t)
	group := newTestCgroup(t)
	o := newTestOwners(t, s)
	s.must(o.load())
	s.must(o.watch(cgroups, group.start(t, s, "init").Process.Pid))
	to := netip.MustParseAddrPort("127.0.0.1:9021")

	guilty := group.start(t, s, "sendclose", to.String())
	src := netip.MustParseAddrPort(guilty.said)
	innocent := group.start(t, s, "bindsend", src.String())
	if p := o.sender(src, to, time.Now().Add(patience)); p == nil || p.PID == innocent.Process.Pid && p.Unsure != notSeenToSend {
		t.Errorf("what %d sent, and left its port to %d, is %+v's", guilty.Process.Pid, innocent.Process.Pid, p)
	}

	for _, at := range []string{"127.0.0.1:9022", "[::1]:9022"} {
		crowd := group.start(t, s, "crowd", at)
		p := o.sender(netip.MustParseAddrPort(at), to, time.Now().Add(patience))
		if p == nil || p.Unsure != tooManySockets {
			t.Errorf("of too many sockets at %s, %d's, one is %+v's", at, crowd.Process.Pid, p)
		}
	}
	honest := group.start(t, s, "send", to.String()) // the answer that was not read to its end is in nobody's way
	if p := o.sender(netip.MustParseAddrPort(honest.said), to, time.Now().Add(patience)); p == nil || p.PID != honest.Process.Pid || p.Unsure != "" {
		t.Errorf("after that, what %d sends is %+v's", honest.Process.Pid, p)
	}
}
