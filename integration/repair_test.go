package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A gateway that was lost is another one after a repair, or the next exec. It
// decides as the lost one did: by the policy as it is now and the operator's
// decisions; names keep their addresses, and the audit log is one chain.
func TestRepair(t *testing.T) {
	for _, c := range []struct {
		how    string
		repair func(b *box) result
	}{
		{"nemoclaw repair", func(b *box) result { return b.nemoclaw(nil, "repair", b.id) }},
		{"nemoclawctl repair", func(b *box) result { return b.ctl("repair", b.id) }},
		{"exec", func(b *box) result { return b.execute(b.id, "/bin/true") }},
	} {
		t.Run(c.how, func(t *testing.T) {
			e := publicEcho(t)
			b, main := e.sandbox(allowed...)
			if c.how == "nemoclawctl repair" {
				b.flags = nil
			}
			mate := b.mate()
			second := mate.up()
			b.decide("deny", "web.good.example", 80)
			const granted, counted = "dial public.example:7000 hello", "dial public.example:7001 hello"
			b.decides("for 1h0m0s", "approve", "--for", "1h", b.id, "public.example:7000")
			b.decides("2 times", "approve", "--uses", "2", b.id, "public.example:7001")
			main.want("ok hello", granted)
			main.want("ok hello", counted)
			address := main.ask("resolve echo.good.example")
			kill(t, b.monitor())
			for _, k := range []*talk{main, second} {
				k.want("ECONNREFUSED", "dial 203.0.113.77:7000")
			}
			// An empty list is not taken for nothing to decide.
			for _, list := range []string{"pending", "grants"} {
				if got := b.ctl(list); !strings.Contains(got.stderr, b.id+": its gateway is down") {
					t.Errorf("%s: %s", list, got)
				}
			}
			b.policy(e.policy(e.Uplink(), append([]string{"other.good.example 7000"}, allowed...)...))

			if got := c.repair(b); got.code != 0 {
				t.Fatalf("%s: %s", c.how, got)
			}
			for _, k := range []*talk{main, second} {
				k.want("ok hello", "dial echo.good.example:7000 hello")
				k.want("ok hello", "dial other.good.example:7000 hello") // saved while the gateway was dead
				k.want("ECONNRESET", "dial echo.evil.example:7000 hello")
				k.want("ok 403", "http web.good.example:80 web.good.example")
				k.want(address, "resolve echo.good.example")
				k.want("ok hello", granted)
			}
			main.want("ok hello", counted)
			main.want("ECONNRESET", counted)
			b.exec().want("ok hello", "dial echo.good.example:7000 hello")
			if got := b.ctl("audit", "verify", b.auditFile()); got.code != 0 {
				t.Errorf("the chain: %s", got)
			}
			if got := c.repair(b); got.code != 0 {
				t.Errorf("again, of a gateway that lives: %s", got)
			}
			// It knows all its containers.
			if got := b.nemoclaw(nil, "delete", "--force", b.id); got.code != 0 {
				t.Fatalf("delete: %s", got)
			}
			second.want("ok hello", "dial echo.good.example:7000 hello")
		})
	}
}

// Nothing is repaired by halves: a fence that is gone, or another namespace
// under the recorded number, stay as they are, and nothing leaves.
func TestRepairTrustsOnlyWhatIsRecorded(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(b *box)
		says  string
	}{
		{"the fence is gone", func(b *box) { b.flushFence() }, "fence"},
		{"the uplink is gone", func(b *box) { b.must(unix.Unmount(filepath.Join(b.gatewayDir(), "uplink"), unix.MNT_DETACH)) }, "uplink"},
		{"what it was told is gone", func(b *box) { b.must(os.Remove(filepath.Join(b.gatewayDir(), "attach.json"))) }, "lost"},
		{"it served another namespace", func(b *box) {
			dir := b.gatewayDir()
			b.must(unix.Unmount(filepath.Join(dir, "uplink"), unix.MNT_DETACH))
			other := filepath.Join(filepath.Dir(dir), filepath.Base(b.stateDir())+".net1")
			b.must(os.Rename(dir, other))
			b.must(os.Remove(filepath.Join(b.stateDir(), "gateway")))
			b.must(os.Symlink(other, filepath.Join(b.stateDir(), "gateway")))
		}, "another network namespace"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t)
			main := b.up()
			kill(t, b.monitor())
			c.spoil(b)
			if got := b.nemoclaw(nil, "repair", b.id); got.code == 0 || !strings.Contains(got.stderr, c.says) {
				t.Errorf("repair: %s, want %q", got, c.says)
			}
			main.want("ECONNREFUSED", "dial 203.0.113.77:7000")
		})
	}
}

// What dead sandboxes left is gone after the next create, or a repair without a
// name, and what lives is not touched.
func TestSweep(t *testing.T) {
	for _, how := range []string{"the next create", "repair"} {
		t.Run(how, func(t *testing.T) {
			e := newEarth(t)
			alive, main := e.sandbox(allowed...)
			lost, stopped := alive.mate(), alive.mate()
			for _, b := range []*box{lost, stopped} {
				b.dropNamespace(oci.NetworkNamespace)
				b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, oci.LinuxNamespace{Type: oci.NetworkNamespace})
				b.up()
				kill(t, b.monitor())
				kill(t, b.initPID())
			}
			// As after a reboot: the engine knows nothing of it any more.
			lost.must(os.RemoveAll(filepath.Join(lost.path("root"), lost.id)))
			if how == "repair" {
				if got := alive.nemoclaw(nil, "repair"); got.code != 0 || strings.Count(got.stdout, "removed what was left of ") != 2 {
					t.Errorf("repair: %s", got)
				}
			} else {
				next := alive.mate()
				next.up().want("ok hello", "dial echo.good.example:7000 hello")
			}
			for what, pattern := range map[string]string{
				"the lost one's state": lost.path("run/" + lost.id + ".*"), "the stopped one's gateway": stopped.path("run/" + stopped.id + ".*.net*"),
				"the lost one's cgroup": "/sys/fs/cgroup/*/nemoclaw/" + lost.id + "*",
			} {
				if found, _ := filepath.Glob(pattern); len(found) > 0 {
					t.Errorf("%s is still there: %q", what, found)
				}
			}
			if stopped.stateDir() == "" {
				t.Error("a container that its engine still knows was swept away")
			}
			main.want("ok hello", "dial echo.good.example:7000 hello")
		})
	}
}

// Whatever is killed, and whenever: what a forced delete leaves is nothing.
func TestKilledAtAnyTime(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	e := newEarth(t)
	for round := range 30 {
		b := newBox(t)
		b.policy(e.policy("auto", allowed...))
		b.saveSpec()
		k, theirs := b.pipes("main")
		cmd := b.command("run", "--detach", "--bundle", b.path("bundle"), "--pid-file", b.path("pid"), b.id)
		cmd.Stdin, cmd.Stdout = theirs[0], theirs[1]
		b.must(cmd.Start())
		theirs[0].Close()
		theirs[1].Close()
		shot := time.AfterFunc(time.Duration(random.IntN(120))*time.Millisecond, func() { cmd.Process.Kill() })
		_ = cmd.Wait() // it was killed, or faster
		shot.Stop()
		for _, pid := range b.processes() {
			if random.IntN(2) == 0 {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if got := b.nemoclaw(nil, "delete", "--force", b.id); got.code != 0 {
			t.Errorf("round %d: delete: %s", round, got)
		}
		k.in.Close()
		for _, what := range b.leftovers() {
			t.Errorf("round %d: left behind: %s", round, what)
		}
		if t.Failed() {
			return
		}
	}
}

// processes are those of the box that run: its init, its monitor and what these
// have started.
func (b *box) processes() (pids []int) {
	for _, pid := range children(os.Getpid()) {
		pids = append(pids, pid)
		pids = append(pids, children(pid)...)
	}
	return pids
}

// A forced delete beside a create waits for it: it must not take the state away
// from a container that then lives on.
func TestDeleteBesideCreate(t *testing.T) {
	b := newBox(t)
	fifo := b.path("go-on")
	b.must(unix.Mkfifo(fifo, 0o600))
	sh, err := exec.LookPath("sh")
	b.must(err)
	b.spec.Hooks = &oci.Hooks{CreateRuntime: []oci.Hook{{Path: sh, Args: []string{"sh", "-c", fmt.Sprintf("read line <%s", fifo)}}}}
	created := make(chan result)
	go func() {
		_, got := b.create()
		created <- got
	}()
	w, err := os.OpenFile(fifo, os.O_WRONLY, 0) // returns when the hook waits
	b.must(err)
	deleted := make(chan result)
	go func() { deleted <- b.nemoclaw(nil, "delete", "--force", b.id) }()
	select {
	case got := <-deleted:
		t.Errorf("delete did not wait for create: %s", got)
		go func() { deleted <- got }()
	case <-time.After(500 * time.Millisecond):
	}
	fmt.Fprintln(w)
	w.Close()
	if got := <-created; got.code != 0 {
		t.Errorf("create: %s", got)
	}
	if got := <-deleted; got.code != 0 {
		t.Errorf("delete: %s", got)
	}
	if left := b.leftovers(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// A repair brings nothing back that was revoked, also where the policy file has a
// fault by then: what the lost gateway had in force is what the next begins with.
func TestRepairBringsNothingBack(t *testing.T) {
	for _, c := range []struct{ name, file string }{
		{"the file has a fault", "egress: {rulez: []}\n"},
		{"the file is half written", "version: 1\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newEarth(t)
			b, main := e.sandbox(allowed...)
			main.want("ok hello", "dial echo.good.example:7000 hello")
			b.policy(e.policy(e.Uplink(), "web.good.example 80"))
			b.await("the reload", func(l line) bool { return strings.HasPrefix(l.Message, "policy generation") })
			main.want("ECONNRESET", "dial echo.good.example:7000 hello")
			b.policy(c.file)
			kill(t, b.monitor())
			if got := b.nemoclaw(nil, "repair", b.id); got.code != 0 {
				t.Fatalf("repair: %s", got)
			}
			main.want("ECONNRESET", "dial echo.good.example:7000 hello")
			main.want("ok 200", "http web.good.example:80 web.good.example")
		})
	}
}

// While a gateway is dead its addresses are anybody's. Whoever takes them gets no
// connection of a neighbour's and gives none a way out, and the repair ends him and
// nobody else.
func TestRepairWithoutItsAddresses(t *testing.T) {
	e := newEarth(t)
	b, main := e.sandbox(allowed...)
	mate := b.mate()
	second := mate.up()
	for _, verb := range []string{
		"hold tcp4 198.18.0.1:15001", "hold tcp4 198.18.0.1:53", "hold tcp 0.0.0.0:15001", "hold tcp [::]:53",
		"squat tcp 198.18.0.1:15001", "squat udp 198.18.0.1:53", "squat udp 0.0.0.0:53", "squat udp [::]:53",
		"squat tcp [fd6e:656d:6f::1]:15001", "squat tcp 198.18.0.1:53, end-first-thread",
	} {
		main.want("ok hello", "dial echo.good.example:7000 hello")
		squatter, honest := mate.exec(), mate.exec() // later, they would repair it
		squatter.want("ok", "resolve localhost")
		honest.want("ok", "resolve localhost")
		kill(t, b.monitor())
		main.want("ECONNREFUSED", "dial 203.0.113.77:7000")
		for step := range strings.SplitSeq(verb, ", ") {
			squatter.want("ok", step)
		}
		honest.ask("squat udp 127.0.0.1:53") // these are in nobody's way
		honest.want("ok", "squat udp 198.18.0.1:15001")
		main.want("ECONNREFUSED", "dial 203.0.113.77:7000")
		if got := b.nemoclaw(nil, "repair", b.id); got.code != 0 {
			t.Fatalf("repair with %s: %s", verb, got)
		}
		if !squatter.silent() {
			t.Errorf("%s: whoever took the address said more", verb)
		}
		b.await("who was ended", func(l line) bool {
			return strings.Contains(l.Message, `("probe") had taken the gateway's address`) && strings.HasSuffix(l.Message, "was ended")
		})
		for _, k := range []*talk{main, second, honest} {
			k.want("ok hello", "dial echo.good.example:7000 hello")
			k.want("ECONNRESET", "dial echo.evil.example:7000 hello")
		}
		honest.end()
	}
}
