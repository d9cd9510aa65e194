package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"nemoclaw/examples/demo/attempt"
	"nemoclaw/integration/world"
)

// scene is the demo while it is played.
type scene struct {
	context.Context
	*page
	*stage
}

// play has the agent try one thing after the other. An error means that the
// demo could not go on; what merely came out wrong is on the page.
func play(ctx context.Context, p *page, s *stage) error {
	sc := &scene{ctx, p, s}
	for _, part := range []func() error{sc.files, sc.calls, sc.network, sc.egress, sc.decision, sc.reload, sc.revocation, sc.log} {
		if err := part(); err != nil {
			return err
		}
	}
	return nil
}

// try has the agent try something; recorded then finds what was written of it.
func (s *scene) try(do, what string) (attempt.Outcome, error) {
	if err := s.mark(); err != nil {
		return attempt.Outcome{}, err
	}
	return s.box.try(s, do, what)
}

// files is layer 1.
func (s *scene) files() error {
	s.chapter("Files. The agent is root, and the image lies on a writable disk")
	o, err := s.try(attempt.Work, "echo a note >notes && mkdir src && mv notes src && cat src/notes")
	if err != nil {
		return err
	}
	granted, err := s.granted("/sandbox")
	if err != nil {
		return err
	}
	l := line{tried: "work in /sandbox with a shell", want: byLandlock, layer: byNobody, answer: o.Text, good: o.Did && o.Text == "a note"}
	if granted && l.good {
		l.layer, l.answer = byLandlock, "allowed: wrote, moved and read back \""+o.Text+"\""
	}
	s.add(l)

	if o, err = s.try(attempt.Read, "/root/.ssh/id_ed25519"); err != nil {
		return err
	}
	s.add(line{tried: "read /root/.ssh/id_ed25519", want: byLandlock, layer: ofFile(o), good: !o.Did,
		answer: told(o, "root owns the file and its mode would let him")})

	if o, err = s.try(attempt.Write, "/usr/bin/backdoor"); err != nil {
		return err
	}
	s.add(line{tried: "write /usr/bin/backdoor", want: byLandlock, layer: ofFile(o), good: !o.Did,
		answer: told(o, "root owns the directory and its mode would let him")})
	return nil
}

// told is the kernel's answer and what else is known, if that is why.
func told(o attempt.Outcome, more string) string {
	switch {
	case o.Did:
		return "it worked"
	case o.Errno == "":
		return o.Text
	}
	return o.Errno + "; " + more
}

// calls is layer 2.
func (s *scene) calls() error {
	s.chapter("System calls. Only a filter can answer before the kernel looks at the arguments")
	for _, c := range []struct{ call, tried string }{
		{"ptrace", "attach a debugger to its own child"},
		{"mount", "mount a tmpfs on /sandbox"},
		{"socket", "open a packet socket"},
	} {
		o, err := s.try(attempt.Call, c.call)
		if err != nil {
			return err
		}
		kernel := attempt.Errno(attempt.Impossible(c.call)) // no filter of the sandbox holds here
		s.add(line{tried: c.tried, want: bySeccomp, layer: ofCall(o, kernel), good: !o.Did,
			answer: told(o, "also where the kernel alone would say "+kernel)})
	}
	return nil
}

// network is layer 3.
func (s *scene) network() error {
	s.chapter("Network. There is no cable")
	o, err := s.try(attempt.Interfaces, "")
	if err != nil {
		return err
	}
	l := line{tried: "list the network's interfaces", want: byNetwork, layer: byNobody, answer: o.Text, good: o.Did}
	if o.Text == "lo" {
		l.layer, l.answer = byNetwork, "lo, and nothing that leads out"
	}
	s.add(l)

	neighbour := world.Neighbour.String()
	if o, err = s.try(attempt.Get, "http://"+neighbour+"/"); err != nil {
		return err
	}
	r, err := s.recorded("refuse", neighbour, 80)
	if err != nil {
		return err
	}
	packets := s.packets[world.Neighbour].Load()
	s.add(line{tried: "talk to " + neighbour + " on the LAN", want: byEgress, layer: ofRecord(r), good: !o.Did && packets == 0,
		answer: fmt.Sprintf("%d, %s; packets that reached it: %d", o.Status, refusal(o).Reason, packets)})
	return nil
}

// refused is what a program is told over HTTP when its request is refused.
type refused struct{ Reason, Hint string }

func refusal(o attempt.Outcome) (r refused) {
	if json.Unmarshal([]byte(o.Text), &r) != nil || r.Reason == "" {
		r.Reason = o.Text
	}
	return r
}

// egress is layer 4.
func (s *scene) egress() error {
	s.chapter("Egress. The policy lists " + allowed + ":443 and nothing else")
	if err := s.passes(allowed, byRule); err != nil {
		return err
	}
	if err := s.isRefused(unlisted); err != nil {
		return err
	}
	r, err := s.recorded("refuse", unlisted, 443)
	if err != nil {
		return err
	}
	l := line{tried: "look the refusal up in the audit log", want: byEgress, layer: ofRecord(r)}
	if r != nil {
		l.answer = r.String()
		l.good = r.Time > 0 && r.Unmapped.Reason == "not-listed" && r.Actor.Process.File.Path == "/usr/bin/agent" && r.Actor.Process.PID > 0
	}
	s.add(l)

	o, err := s.try(attempt.Get, "http://"+unlisted+"/")
	if err != nil {
		return err
	}
	if r, err = s.recorded("refuse", unlisted, 80); err != nil {
		return err
	}
	s.add(line{tried: "GET http://" + unlisted + "/", want: byEgress, layer: ofRecord(r), good: o.Status == 403 && refusal(o).Hint != "",
		answer: fmt.Sprintf("%d, %s; %s", o.Status, refusal(o).Reason, refusal(o).Hint)})

	packets, asked := s.packets[addresses[unlisted]].Load(), 0
	for _, name := range s.world.Questions() {
		if strings.HasSuffix(name, unlisted) {
			asked++
		}
	}
	s.add(line{tried: "what of that left the host", want: outside, layer: outside, good: packets == 0 && asked == 0,
		answer: fmt.Sprintf("packets to the host: %d; DNS questions for its name: %d", packets, asked)})
	return nil
}

// How the log names what allowed a connection.
const (
	byRule  = "policy.yaml:" // and the line
	byGrant = "grant"        // of an operator
)

// passes has the agent reach https://host/, by what is allowed there.
func (s *scene) passes(host, by string) error {
	o, err := s.try(attempt.Get, "https://"+host+"/")
	if err != nil {
		return err
	}
	r, err := s.recorded("allow", host, 443)
	if err != nil {
		return err
	}
	l := line{tried: "GET https://" + host + "/", want: byEgress, layer: ofRecord(r), answer: o.Text, good: o.Did && o.Text == "hello from "+host}
	if r != nil && l.good {
		l.good = strings.HasPrefix(r.rule(), by)
		l.answer = fmt.Sprintf("%d \"%s\", allowed by %s", o.Status, o.Text, r.rule())
	}
	s.add(l)
	return nil
}

// isRefused has the agent fail to reach https://host/, with an alert that says
// why.
func (s *scene) isRefused(host string) error {
	o, err := s.try(attempt.Get, "https://"+host+"/")
	if err != nil {
		return err
	}
	r, err := s.recorded("refuse", host, 443)
	if err != nil {
		return err
	}
	s.add(line{tried: "GET https://" + host + "/", want: byEgress, layer: ofRecord(r), good: strings.Contains(o.Text, "tls: access denied"),
		answer: fmt.Sprintf("%s, after %d ms", o.Text, o.Took)})
	return nil
}

// decision is an operator's approval.
func (s *scene) decision() error {
	s.chapter("An operator decides, while the agent runs")
	s.does("$ nemoclawctl pending " + s.id)
	out, err := s.ctl("pending", "--json", s.id).Output()
	if err != nil {
		return fmt.Errorf("nemoclawctl pending gave no answer: %w", err)
	}
	var pending []struct {
		Host, Reason string
		Port         uint16
		Count        int
	}
	if err := json.Unmarshal(out, &pending); err != nil {
		return err
	}
	l := line{tried: "see what waits for a decision", want: outside, layer: outside, answer: "nothing"}
	for _, p := range pending {
		if p.Host == unlisted && p.Port == 443 {
			l.good = p.Reason == "not-listed"
			l.answer = fmt.Sprintf("%s:%d, %s, attempts: %d", p.Host, p.Port, p.Reason, p.Count)
		}
	}
	s.add(l)

	s.does("$ nemoclawctl approve " + s.id + " " + unlisted + ":443")
	if out, err := s.ctl("approve", s.id, unlisted+":443").CombinedOutput(); err != nil {
		return fmt.Errorf("nemoclawctl approve: %s", bytes.TrimSpace(out))
	}
	return s.passes(unlisted, byGrant)
}

// reload is a rule that is saved.
func (s *scene) reload() error {
	s.chapter("The policy file is edited, while the agent runs")
	if err := s.isRefused(saved); err != nil {
		return err
	}
	s.does("policy.yaml is saved with a rule for " + saved)
	if err := s.save(saved); err != nil {
		return err
	}
	return s.passes(saved, byRule)
}

// save saves the policy and waits until it is in force.
func (s *scene) save(more ...string) error {
	if err := s.writePolicy(more...); err != nil {
		return err
	}
	return s.inForce(s)
}

// revocation is a rule that is removed.
func (s *scene) revocation() error {
	o, err := s.try(attempt.Hold, "https://"+saved+"/stream")
	if err != nil {
		return err
	}
	r, err := s.recorded("allow", saved, 443)
	if err != nil {
		return err
	}
	s.add(line{tried: "keep a connection to " + saved, want: byEgress, layer: ofRecord(r), good: o.Did, answer: "\"" + o.Text + "\", and it stays open"})

	s.does("policy.yaml is saved without the rule")
	if err := s.box.ask(attempt.Held, ""); err != nil {
		return err
	}
	if err := s.save(); err != nil {
		return err
	}
	if o, err = s.box.answer(s); err != nil {
		return err
	}
	if !o.Did { // the end of a connection may be written after it
		if err := s.await(s, func(r *record) bool { return r.is("cut", saved, 443) }); err != nil {
			return err
		}
	}
	if r, err = s.recorded("cut", saved, 443); err != nil {
		return err
	}
	l := line{tried: "go on using that connection", want: byEgress, layer: ofRecord(r), answer: cmp.Or(o.Errno, o.Text)}
	if r != nil {
		l.good = !o.Did && o.Errno == "ECONNRESET" && r.Unmapped.Reason == "revoked"
		l.answer += "; the audit log says " + r.Unmapped.Verdict + ", " + r.Unmapped.Reason
	}
	s.add(l)
	return s.isRefused(saved)
}

// log is what remains: the record, which nobody can change unnoticed.
func (s *scene) log() error {
	s.chapter("What remains")
	if err := s.stop(); err != nil {
		return err
	}
	file, err := s.stage.log()
	if err != nil {
		return err
	}
	s.does("$ nemoclawctl audit verify " + s.id + ".jsonl")
	out, err := s.ctl("audit", "verify", file).CombinedOutput()
	_, sum, _ := strings.Cut(string(bytes.TrimSpace(out)), ": ")
	s.add(line{tried: "check the audit log's chain", want: outside, layer: outside, good: err == nil, answer: sum})
	return nil
}

// sweep looks for what was left behind.
func sweep(p *page, s *stage) {
	left := s.left()
	answer := "no process, mount, cgroup or file is left"
	if len(left) > 0 {
		answer = strings.Join(left, "; ")
	}
	p.add(line{tried: "sweep up", want: outside, layer: outside, good: len(left) == 0, answer: answer})
}
