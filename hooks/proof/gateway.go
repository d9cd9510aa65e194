package proof

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"slices"

	"nemoclaw/egress/control"
	"nemoclaw/hooks"
)

// gateway looks at the gateway's processes and at the policy that it decides
// by.
func (b *box) gateway() []Layer {
	g := b.layer("gateway", "a monitor, and a worker that is nobody, without files, in the uplink")
	p := b.layer("policy", "built-in, as it was at create")
	if b.PolicyFile != "" {
		p.Asked = b.PolicyFile + " as it is now"
	}
	if b.life == Ended {
		return []Layer{g, p}
	}
	m, err := livingMonitor(control.Gateway(b.dir))
	if err != nil {
		g.fault("the monitor is gone, everything is refused: %v", err)
		p.hide("which policy is in force: nobody decides, everything is refused")
		return []Layer{g, p}
	}
	if b.status, err = b.prover.Ask(b.dir); err != nil {
		g.fault("the monitor does not answer: %v", err)
		p.hide("which policy is in force: the gateway does not answer")
		return []Layer{g, p}
	}
	g.Verified = "processes looked up in /proc, the monitor asked on its socket"
	if b.status.Worker == 0 { // nothing passes
		g.Active = fmt.Sprintf("monitor %d; a worker starts with the next connection, %d restarts", b.status.Monitor, b.status.Restarts)
	} else {
		b.workerLayer(&g, b.status.Worker)
	}
	if b.status.Monitor != m.PID {
		g.fault("process %d answers for the monitor, which is %d", b.status.Monitor, m.PID)
	}
	b.policyLayer(&p)
	return []Layer{g, p}
}

// livingMonitor returns the monitor if it has not ended.
func livingMonitor(gateway string) (*control.Monitor, error) {
	m, err := control.ReadMonitor(gateway)
	if err != nil {
		return nil, err
	}
	start, err := control.StartTime(m.PID)
	if err != nil {
		return nil, err
	}
	if c, err := readCredentials(m.PID, m.PID); start != m.Start || err != nil || c.zombie {
		return nil, fmt.Errorf("process %d has ended", m.PID)
	}
	return m, nil
}

// workerLayer checks how the worker is confined: it reads what agents send.
func (b *box) workerLayer(l *Layer, pid int) {
	l.Active = fmt.Sprintf("monitor %d, worker %d, %d restarts", b.status.Monitor, pid, b.status.Restarts)
	for _, tid := range threads(pid) {
		c, err := readCredentials(pid, tid)
		switch {
		case err != nil || c.zombie:
		case c.mode != seccompFilter:
			l.fault("the worker %d has no seccomp filter", pid)
		case !c.noNewPrivs:
			l.fault("the worker %d has not set no_new_privs", pid)
		case c.uid == 0 || c.caps["CapEff"] != 0 || c.caps["CapPrm"] != 0:
			l.fault("the worker %d is user %d with the capabilities %s", pid, c.uid, capabilityList(c.caps["CapEff"]|c.caps["CapPrm"]))
		}
	}
	if b.prover.kernel != nil {
		b.workerDomain(l, pid)
	}
	ns, err := hooks.OpenNetns(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil || b.uplink == nil {
		l.hide("where the worker dials from")
		return
	}
	defer ns.Close()
	if same, err := hooks.SameNetns(ns, b.uplink); err != nil || !same {
		l.fault("the worker %d does not live in the pinned uplink", pid)
	}
}

func (b *box) workerDomain(l *Layer, pid int) {
	all, err := b.prover.kernel.Threads()
	if err != nil {
		return
	}
	own := threads(pid)
	for _, t := range all {
		if slices.Contains(own, t.TID) && !t.Confined() {
			l.fault("the worker %d is in no Landlock domain", pid)
		}
	}
	l.Verified += "; its domain read in the kernel"
}

// policyLayer compares what decides with the file. A file that does not parse
// leaves the last good one in force, which may allow what the file does not.
func (b *box) policyLayer(l *Layer) {
	st := b.status
	l.Active = fmt.Sprintf("generation %d, sha256 %.12s", st.Generation, st.Digest)
	l.Verified = "the monitor asked, the file read and hashed"
	if st.PolicyFault != "" {
		l.fault("the file is not in force: %s", st.PolicyFault)
		return
	}
	file, want := b.PolicyFile, b.PolicyDigest
	if st.ID != b.ID { // whose rules of egress are the same, or it could not have joined
		l.Asked = "that of " + st.ID + ", whose gateway it joined"
		file, want = st.PolicyFile, st.Digest
	}
	if file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			l.fault("the file cannot be read: %v", err)
			return
		}
		sum := sha256.Sum256(text)
		want = hex.EncodeToString(sum[:])
	}
	if st.Digest != want {
		l.fault("sha256 %.12s is in force, and %.12s was asked for", st.Digest, want)
	}
}
