package main

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// How the client asks: a lone one at half the rate that a sandbox may, many
// without waiting longer for an answer than one ever takes.
const (
	askEvery   = 10 * time.Millisecond
	askWithin  = time.Second
	askBriefly = 50 * time.Millisecond
)

// asker asks one name server over UDP, from one port.
type asker struct {
	conn   *dns.Conn
	name   string
	asked  int
	within time.Duration
}

// newAsker returns one that asks the server o.Addr, or the one in resolv.conf,
// for the name in o.Path, where "*" is another label each time.
func newAsker(o order, within time.Duration) (*asker, error) {
	server := o.Addr
	if server == "" {
		conf, err := dns.ClientConfigFromFile("/etc/resolv.conf")
		if err != nil {
			return nil, err
		}
		if len(conf.Servers) == 0 {
			return nil, errors.New("no name server in resolv.conf")
		}
		server = net.JoinHostPort(conf.Servers[0], conf.Port)
	}
	conn, err := dns.Dial("udp", server)
	if err != nil {
		return nil, err
	}
	return &asker{conn: conn, name: o.Path, within: within}, nil
}

// ask returns how long the answer to one question took.
func (a *asker) ask() (time.Duration, error) {
	a.asked++
	label := fmt.Sprintf("n%x-%d", time.Now().UnixNano(), a.asked)
	q := new(dns.Msg).SetQuestion(dns.Fqdn(strings.Replace(a.name, "*", label, 1)), dns.TypeA)
	begin := time.Now()
	if err := errors.Join(a.conn.SetDeadline(begin.Add(a.within)), a.conn.WriteMsg(q)); err != nil {
		return 0, err
	}
	for {
		r, err := a.conn.ReadMsg()
		switch {
		case err != nil:
			return 0, err
		case r.Id != q.Id: // to a question that was given up
			continue
		case r.Rcode != dns.RcodeSuccess || len(r.Answer) == 0:
			return 0, fmt.Errorf("the answer is %s with %d records", dns.RcodeToString[r.Rcode], len(r.Answer))
		}
		return time.Since(begin), nil
	}
}

// questions asks o.Count questions, one after the other and no faster than the
// sandbox's limit lets them through.
func questions(o order) (answer, error) {
	a, err := newAsker(o, askWithin)
	if err != nil {
		return answer{}, err
	}
	defer a.conn.Close()
	var took []time.Duration
	for pace := time.NewTicker(askEvery); len(took) < o.Count; <-pace.C {
		d, err := a.ask()
		if err != nil {
			return answer{}, err
		}
		took = append(took, d)
	}
	slices.Sort(took)
	return answer{Count: len(took), P50: int64(took[len(took)/2]), P99: int64(took[len(took)*99/100])}, nil
}

// manyQuestions asks from o.Clients ports as fast as they are answered, for
// o.Millis, and counts the answers of the second half: by then what may come at
// once has come.
func manyQuestions(o order) (answer, error) {
	whole := time.Duration(o.Millis) * time.Millisecond
	begin := time.Now()
	var mu sync.Mutex
	var wg sync.WaitGroup
	var sum answer
	var errs []error
	for range o.Clients {
		a, err := newAsker(o, askBriefly)
		if err != nil {
			return answer{}, err
		}
		wg.Go(func() {
			defer a.conn.Close()
			good, dropped := 0, 0
			var fault error
			for time.Since(begin) < whole && fault == nil {
				_, err := a.ask()
				var late net.Error
				switch {
				case time.Since(begin) < whole/2:
				case err == nil:
					good++
				case errors.As(err, &late) && late.Timeout():
					dropped++
				default:
					fault = err
				}
			}
			mu.Lock()
			defer mu.Unlock()
			sum.Count += good
			sum.Failed += dropped
			errs = append(errs, fault)
		})
	}
	wg.Wait()
	sum.Nanos = int64(whole / 2)
	return sum, errors.Join(errs...)
}
