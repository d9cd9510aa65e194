package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netns"

	"nemoclaw/egress/control"
)

// remote is a client somewhere else: in a container or a network namespace.
type remote struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *json.Decoder
	stderr bytes.Buffer
}

// startClient starts cmd, which runs the client, in the network namespace ns,
// or in ours if that is nil.
func startClient(cmd *exec.Cmd, ns *os.File) (*remote, error) {
	r := &remote{cmd: cmd}
	cmd.Stderr = &r.stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	r.in, r.out = in, json.NewDecoder(out)
	if ns == nil {
		return r, cmd.Start()
	}
	return r, within(ns, cmd.Start)
}

// within runs f on a thread in the network namespace ns. The thread ends with
// f, but not before, so that what f starts may name it as its parent.
func within(ns *os.File, f func() error) error {
	done := make(chan error, 1)
	go func() {
		goruntime.LockOSThread()
		if err := netns.Set(netns.NsHandle(ns.Fd())); err != nil {
			done <- fmt.Errorf("cannot enter a network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// ask has an order carried out.
func (r *remote) ask(o order) (answer, error) {
	var a answer
	if err := json.NewEncoder(r.in).Encode(o); err != nil {
		return a, fmt.Errorf("cannot tell the client to %s: %w: %s", o.Op, err, bytes.TrimSpace(r.stderr.Bytes()))
	}
	if err := r.out.Decode(&a); err != nil {
		return a, fmt.Errorf("cannot hear the client, told to %s: %w: %s", o.Op, err, bytes.TrimSpace(r.stderr.Bytes()))
	}
	if a.Fault != "" {
		return a, fmt.Errorf("the client could not %s %s: %s", o.Op, o.Addr, a.Fault)
	}
	return a, nil
}

// Close ends the client, and with it its container.
func (r *remote) Close() error {
	r.in.Close()
	return r.cmd.Wait()
}

// startIn starts a client in a container of c's, made from bundle. The
// container is deleted when the client ends.
func (b *bench) startIn(c contestant, bundle string, flags ...string) (r *remote, id string, err error) {
	b.started++
	id = fmt.Sprintf("%s-%d", b.cgroup, b.started)
	cmd := c.command(append(append([]string{}, flags...), "run", "--bundle", bundle, id)...)
	if r, err = startClient(cmd, nil); err != nil {
		return nil, "", err
	}
	// The client is there when it has answered.
	if _, err := r.ask(order{Op: "getppid"}); err != nil {
		return nil, "", errors.Join(err, r.Close())
	}
	return r, id, nil
}

// gateway is the processes of a sandbox's gateway: its monitor, and the worker
// once a connection has started it.
type gateway []int

// gatewayOf finds the gateway of nemoclaw's container id.
func gatewayOf(c contestant, id string) (gateway, error) {
	m, err := control.ReadMonitor(control.Gateway(control.Dir("/run/nemoclaw", c.argv[2], id)))
	if err != nil {
		return nil, err
	}
	return append(gateway{m.PID}, children(m.PID)...), nil
}

// children returns the processes that the threads of pid have started.
func children(pid int) (pids []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is a good one
	for _, file := range lists {
		text, _ := os.ReadFile(file)
		for _, word := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(word); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// busy returns how long processes have been on a processor (proc_pid_schedstat:
// the first field of each thread's, in nanoseconds).
func busy(pids []int) (sum time.Duration, err error) {
	for _, pid := range pids {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		if err != nil {
			return 0, err
		}
		for _, file := range threads {
			text, err := os.ReadFile(file)
			if err != nil {
				continue // the thread has ended
			}
			var ns int64
			if _, err := fmt.Sscan(string(text), &ns); err != nil {
				return 0, fmt.Errorf("cannot understand %s: %w", file, err)
			}
			sum += time.Duration(ns)
		}
	}
	return sum, nil
}
