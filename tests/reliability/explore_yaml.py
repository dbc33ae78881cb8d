import signal, sys, tempfile, traceback, collections, os, io, contextlib
sys.path.insert(0,'tests'); import conftest
from pathlib import Path
from reliability.broken_data import BYTES
from reliability.broken_configs import *
from ptft_recipes.cli import parse_args
from ptft_recipes.errors import InputError
import typing
lo, hi = int(sys.argv[1]), int(sys.argv[2])
class Hang(BaseException): pass
def h(*a): raise Hang()
signal.signal(signal.SIGALRM, h)
recipes={n:conftest.load_recipe(n) for n in('finetune_cls','pretrain_mlm')}
types={n:(m.ModelArguments,m.DataArguments,m.TuningArguments,m.TrainingArguments) for n,m in recipes.items()}
names={n:[f.name for t in ts for f in dataclasses.fields(t) if f.init] for n,ts in types.items()}
c=collections.Counter(); shown=collections.Counter()
import time
for seed in range(lo,hi):
    recipe=['finetune_cls','pretrain_mlm'][seed%2]
    env=dict(os.environ)
    with tempfile.TemporaryDirectory() as d:
        case=make_config(seed,Path(d),names[recipe],BYTES)
        err=io.StringIO(); msg=''
        signal.alarm(5); t=time.time()
        try:
            try:
                with contextlib.redirect_stderr(err):
                    out_=parse_args(types[recipe],recipes[recipe].DEFAULTS,["--config",str(case.path),"--use_cpu","true","--bf16","false"] if 0 else ["--config",str(case.path)])
                msg=compare_config(case,out_[-1],out_[:-1])
            finally: signal.alarm(0)
            out='OK'
        except SystemExit as e:
            out='refused'; m=err.getvalue().replace(str(case.path),'')
            if e.code!=2: msg=f'code {e.code}'
            elif m.count('\n')!=1 or len(m)>1500: msg=f'bad message {len(m)} {m[:200]!r} {m[-100:]!r}'
            elif case.valid: msg='refused valid '+m
        except InputError as e:
            out='refused'; m=str(e); 
            if '\n' in m or len(m)>1000: msg=f'bad {m[:200]}'
        except Hang: out='HANG'; msg='hang'
        except BaseException as e:
            tb=traceback.extract_tb(e.__traceback__)
            own=[f"{Path(f.filename).name}:{f.lineno}" for f in tb if 'ptft_recipes' in f.filename or 'broken' in f.filename]
            out='CRASH'; msg=f"{type(e).__name__} {str(e)[:100]!r} {own[-2:]} {Path(tb[-1].filename).name}:{tb[-1].lineno}"
        if time.time()-t>2: print('slow',seed,case.done,time.time()-t)
        c[out]+=1
        if msg:
            key=(out,msg[:30]); shown[key]+=1
            if shown[key]<=3: print(seed,out,case.done,'|',msg)
    os.environ.clear(); os.environ.update(env)
print(c,sum(shown.values()))
