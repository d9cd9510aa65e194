package worker

import (
	"strconv"
	"time"

	wire "github.com/miekg/dns"

	"nemoclaw/egress/control"
	"nemoclaw/egress/dns"
	"nemoclaw/specs/policy"
)

// questionRefused records a DNS question that was not answered, and returns when
// that is written, or counted as one of many: what is refused all the same need
// not wait for a record that cannot be. What is no name stands in the detail: a
// record's host is one.
func (s *server) questionRefused(q dns.Question) {
	r := s.question(control.Refuse, q.Host, q.Type, q.By)
	r.Reason, r.Generation = string(q.Reason), s.rules.Load().generation
	if q.Reason == policy.BadName {
		r.Host, r.Detail = "", r.Detail+" for "+strconv.Quote(q.Host)
	}
	_ = s.records.refuse(r)
}

// question begins the record of a DNS question.
func (s *server) question(verdict control.Verdict, host, qtype string, by dns.Asker) control.Record {
	return control.Record{
		Verdict: verdict, Proto: "dns", Host: host, Port: 53, Src: by.Src, Dst: by.Dst,
		Detail:  "question of type " + qtype,
		Request: s.boot + "-" + strconv.FormatUint(s.serial.Add(1), 10),
	}
}

// beyond lets a question of another type than an address's leave, if a rule
// names that very host and type. The decision is recorded first, as that of a
// connection is: a question has an end, too.
func (s *server) beyond(host string, qtype uint16, by dns.Asker) func() dns.Found {
	r := s.rules.Load()
	name := wire.TypeToString[qtype]
	v := r.policy.DecideDNS(host, name, time.Now())
	if !v.Allow || r.noUplink || r.denied(host) {
		return nil
	}
	return func() dns.Found {
		began := time.Now()
		rec := s.question(control.Allow, host, name, by)
		rec.Rule, rec.Would, rec.Generation = r.policy.Where(v.Rule), string(v.Would), r.generation
		if err := s.records.write(rec); err != nil {
			return dns.Found{Rcode: wire.RcodeServerFailure}
		}
		found, err := s.names.beyond(host, qtype)
		rec.Verdict, rec.Lasted = control.End, time.Since(began)
		if err != nil {
			rec.Verdict, rec.Detail = control.Fail, rec.Detail+": "+err.Error()
		}
		s.records.note(rec)
		return found
	}
}

// denied tells whether the operator denied a host's DNS, at port 53.
func (r *rules) denied(host string) bool {
	g := r.granted(attempt{target: target{host: host, port: 53}})
	return g != nil && !g.Allow
}
